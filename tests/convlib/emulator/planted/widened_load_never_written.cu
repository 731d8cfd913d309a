// fault: uninitialised read
// The half of a wide load that is used was never written; that the other half is not used does not excuse it.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ __align__(8) float tile[128];
    tile[2 * threadIdx.x + 1] = x[threadIdx.x];
    __syncthreads();
    const unsigned place = __cvta_generic_to_shared(&tile[2 * threadIdx.x]);
    float value, padding;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value), "=f"(padding) : "r"(place) : "memory");  // here
    y[threadIdx.x] = value;
}
