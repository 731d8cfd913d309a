// fault: none
extern "C" __global__ void planted(const float* x, float* y)
{
    float value = x[threadIdx.x];
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    const unsigned positive = __ballot_sync(~0u, value > 0.f);
    y[threadIdx.x] = __any_sync(~0u, value < 0.f) ? value : value + (float)__popc(positive & __activemask());
}
