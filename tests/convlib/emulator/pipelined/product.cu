// c = a b on tensor cores: a M x K, b K x N, 16-bit floats (float16, or bfloat16 with -DBFLOAT16); c M x N, float32.
//
// One block of 4 warps makes 64 x 64 of c, 32 of k at a time, a warp 32 x 32 of it. Tiles come by cp.async in three
// stages: two are in flight while one is multiplied. A tile's rows are cut into chunks of 16 bytes, and chunk and row
// are mixed (swizzled) so that the 8 rows that ldmatrix reads at once, and the 8 chunks that 8 lanes write at once, lie
// in different banks. K and N: multiples of 8, so that a chunk is inside as a whole or not at all.
#ifdef BFLOAT16
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
#define MMA "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif

typedef unsigned short half;
constexpr int STAGES = 3, TILE_A = 64 * 32, TILE_B = 32 * 64;

// Where in its tile a chunk of 8 elements lies.
__device__ int place_a(int row, int chunk) { return 32 * row + 8 * (chunk ^ (row >> 1 & 3)); }
__device__ int place_b(int row, int chunk) { return 64 * row + 8 * (chunk ^ (row & 7)); }

__device__ unsigned shared_address(const half* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void copy(half* into, const half* from, bool inside)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(into)), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

__device__ void copy_tiles(half* a_tile, half* b_tile, const half* a, const half* b, int M, int N, int K, int k0)
{
    const int m0 = 64 * blockIdx.y, n0 = 64 * blockIdx.x;
    for (int i = threadIdx.x; i < 256; i += 128) {
        const int row = i / 4, chunk = i % 4, m = m0 + row, k = k0 + 8 * chunk;
        const bool inside = m < M && k < K;
        copy(a_tile + place_a(row, chunk), a + (inside ? m * K + k : 0), inside);
    }
    for (int i = threadIdx.x; i < 256; i += 128) {
        const int row = i / 8, chunk = i % 8, k = k0 + row, n = n0 + 8 * chunk;
        const bool inside = k < K && n < N;
        copy(b_tile + place_b(row, chunk), b + (inside ? k * N + n : 0), inside);
    }
}

extern "C" __global__ void product(const half* a, const half* b, float* c, int M, int N, int K)
{
    __shared__ __align__(128) half a_tiles[STAGES][TILE_A], b_tiles[STAGES][TILE_B];
    const int lane = threadIdx.x % 32, warp_m = threadIdx.x / 32 % 2, warp_n = threadIdx.x / 64;
    float sums[2][4][4] = {};

    const int tiles = (K + 31) / 32;
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < tiles) copy_tiles(a_tiles[stage], b_tiles[stage], a, b, M, N, K, 32 * stage);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    for (int tile = 0; tile < tiles; ++tile) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        const half *a_tile = a_tiles[tile % STAGES], *b_tile = b_tiles[tile % STAGES];
        for (int step = 0; step < 2; ++step) {
            unsigned a_parts[2][4], b_parts[4][2];
            for (int i = 0; i < 2; ++i) {
                const half* row = a_tile + place_a(32 * warp_m + 16 * i + lane % 16, 2 * step + lane / 16);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(a_parts[i][0]), "=r"(a_parts[i][1]), "=r"(a_parts[i][2]), "=r"(a_parts[i][3])
                             : "r"(shared_address(row)) : "memory");
            }
            for (int j = 0; j < 4; j += 2) {
                const half* row = b_tile + place_b(16 * step + lane % 16, 4 * warp_n + j + lane / 16);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(b_parts[j][0]), "=r"(b_parts[j][1]), "=r"(b_parts[j + 1][0]), "=r"(b_parts[j + 1][1])
                             : "r"(shared_address(row)) : "memory");
            }
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j)
                    asm volatile(MMA "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                                 : "+f"(sums[i][j][0]), "+f"(sums[i][j][1]), "+f"(sums[i][j][2]), "+f"(sums[i][j][3])
                                 : "r"(a_parts[i][0]), "r"(a_parts[i][1]), "r"(a_parts[i][2]), "r"(a_parts[i][3]),
                                   "r"(b_parts[j][0]), "r"(b_parts[j][1]));
        }
        const int next = tile + STAGES - 1;
        if (next < tiles) copy_tiles(a_tiles[next % STAGES], b_tiles[next % STAGES], a, b, M, N, K, 32 * next);
        asm volatile("cp.async.commit_group;" ::: "memory");
    }

    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int k = 0; k < 4; ++k) {
                const int m = 64 * blockIdx.y + 32 * warp_m + 16 * i + lane / 4 + 8 * (k / 2);
                const int n = 64 * blockIdx.x + 32 * warp_n + 8 * j + 2 * (lane % 4) + k % 2;
                if (m < M && n < N) c[m * N + n] = sums[i][j][k];
            }
}
