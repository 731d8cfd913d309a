// fault: none
// Every thread, the last lane of its warp too, reads and then writes an element that it alone uses.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float own[64];
    own[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    own[threadIdx.x] += x[threadIdx.x + 64];
    __syncthreads();
    y[threadIdx.x] = own[threadIdx.x];
}
