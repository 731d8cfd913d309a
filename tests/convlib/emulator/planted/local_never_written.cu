// fault: uninitialised read
extern "C" __global__ void planted(const int* x, float* y)
{
    float kept[16];
    for (int i = 0; i < 8; ++i) kept[x[i]] = (float)i;
    y[threadIdx.x] = kept[(x[threadIdx.x] + 8) & 15];  // here
}
