// fault: race: read after write
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float sum;
    if (threadIdx.x == 0) sum = 0.f;
    __syncthreads();
    atomicAdd(&sum, x[threadIdx.x]);
    y[threadIdx.x] = *(volatile float*)&sum;  // here
}
