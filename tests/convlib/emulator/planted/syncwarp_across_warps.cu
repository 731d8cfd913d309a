// fault: race: read after write
// A warp-level barrier does not wait for the other warp.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = tile[63 - threadIdx.x];  // here
}
