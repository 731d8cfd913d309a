// fault: none
// blocks: 2
// The last block to come reads what both left.
__device__ float left[2][64];
__device__ unsigned come;

extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ bool last;
    left[blockIdx.x][threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicInc(&come, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    for (int block = 0; block < 2; ++block) y[block * 64 + threadIdx.x] = left[block][63 - threadIdx.x];
}
