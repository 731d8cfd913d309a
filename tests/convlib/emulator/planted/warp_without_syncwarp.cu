// fault: race: read after write
// Threads of one warp exchange values through shared memory and count on lock step, which GPUs no longer promise.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[threadIdx.x ^ 1];  // here
}
