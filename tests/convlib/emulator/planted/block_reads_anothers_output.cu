// fault: race: read after write
// Block 1 reads what block 0 writes in the same launch.
// blocks: 2
extern "C" __global__ void planted(const float* x, float* y)
{
    const int i = 64 * blockIdx.x + threadIdx.x;
    y[i] = x[i];
    __syncthreads();
    if (blockIdx.x == 1) y[i] += y[i - 64];  // here
}
