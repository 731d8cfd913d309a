// fault: race: read after write
// Each thread reads its neighbour's element of the tile, and nobody waited for it to be written.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[63 - threadIdx.x];  // here
}
