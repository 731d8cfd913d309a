// fault: out of bounds
// The launch asks for 128 bytes, the kernel uses 256.
// shared: 128
extern "C" __global__ void planted(const float* x, float* y)
{
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
