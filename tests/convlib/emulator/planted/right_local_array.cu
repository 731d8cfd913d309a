// fault: none
extern "C" __global__ void planted(const int* x, float* y)
{
    float kept[16];
    for (int i = 0; i < 16; ++i) kept[i] = 0.f;
    for (int i = 0; i < 8; ++i) kept[x[i]] = (float)i;
    y[threadIdx.x] = kept[(x[threadIdx.x] + 8) & 15];
}
