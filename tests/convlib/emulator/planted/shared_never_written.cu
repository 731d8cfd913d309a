// fault: uninitialised read
// The halo of the tile is read and was never filled.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[66];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + 2];  // here
}
