// fault: misaligned
extern "C" __global__ void planted(const float* x, float* y)
{
    const float4 four = *reinterpret_cast<const float4*>(x + threadIdx.x);  // here
    y[threadIdx.x] = four.x + four.y + four.z + four.w;
}
