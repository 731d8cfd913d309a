// fault: race: write after read
// The second round overwrites the tile that a slower thread may still be reading.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    float sum = 0.f;
    for (int round = 0; round < 2; ++round) {
        tile[threadIdx.x] = x[64 * round + threadIdx.x];  // here
        __syncthreads();
        sum += tile[63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}
