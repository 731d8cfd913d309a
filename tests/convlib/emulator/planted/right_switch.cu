// fault: none
extern "C" __global__ void planted(const float* x, float* y)
{
    float value = x[threadIdx.x];
    switch (threadIdx.x % 8) {
        case 0: value += 1.f; break;
        case 1: value *= 2.f; break;
        case 2: value -= 3.f; break;
        case 3: value *= value; break;
        case 4: value = -value; break;
        case 5: for (int i = 0; i < threadIdx.x; ++i) value += 0.5f; break;
        default: break;
    }
    y[threadIdx.x] = value;
}
