// fault: out of bounds
// Row 8 of a tile of 8 rows; on a GPU it would silently read the next variable.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[8][9];
    __shared__ float other[64];
    tile[threadIdx.x / 8][threadIdx.x % 8] = x[threadIdx.x];
    other[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x / 8 + 1][threadIdx.x % 8] + other[63 - threadIdx.x];  // here
}
