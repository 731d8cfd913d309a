// Just enough CUDA to compile a kernel of kernels/cupy_raw with g++ and run it: threads are fibres, a block at a time.
//
// A fibre runs until it reaches a barrier or its end, then the next one runs; the order is turned round at each barrier.
// So a missing barrier shows: the first fibre reads what no other has written yet. Shared memory is filled with NaNs
// before each block, and a barrier that only some threads reach is an error.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __constant__ const
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("shared_memory")))

struct dim3 { unsigned x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
inline float __uint_as_float(unsigned bits) { float value; memcpy(&value, &bits, 4); return value; }
inline unsigned __float_as_uint(float value) { unsigned bits; memcpy(&bits, &value, 4); return bits; }
inline float half_to_float(unsigned short bits) { _Float16 half; memcpy(&half, &bits, 2); return half; }
inline unsigned short float_to_half(float value)
{
    _Float16 half = value;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
}

struct Fibre { ucontext_t context; std::vector<char> stack; bool done, at_barrier; };
static ucontext_t scheduler;
static Fibre* running;

inline void wait_for_others(bool at_barrier)
{
    running->at_barrier = at_barrier;
    swapcontext(&running->context, &scheduler);
}
inline void __syncthreads() { wait_for_others(true); }

// What lane + further of the warp has, or what this lane has if there is no such lane. Warps may have left, not lanes.
static double shuffled[1024];
template <class Number> Number shuffle(Number number, int further)
{
    const int own = threadIdx.x, from = own / 32 == (own + further + 32) / 32 - 1 ? own + further : own;
    shuffled[own] = number;
    wait_for_others(false);
    const Number result = shuffled[from];
    wait_for_others(false);
    return result;
}
template <class Number> Number __shfl_up_sync(unsigned, Number number, int by) { return shuffle(number, -by); }
template <class Number> Number __shfl_down_sync(unsigned, Number number, int by) { return shuffle(number, by); }

extern char __start_shared_memory[] __attribute__((weak)), __stop_shared_memory[] __attribute__((weak));

struct Body { virtual void operator()() = 0; };
static Body* body;

static void enter()
{
    (*body)();
    running->done = true;
    swapcontext(&running->context, &scheduler);
}

static void resume(Fibre& fibre, unsigned index)
{
    threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / blockDim.x / blockDim.y};
    running = &fibre;
    swapcontext(&scheduler, &fibre.context);
}

static bool run_block(std::vector<Fibre>& fibres)
{
    if (__start_shared_memory) memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (Fibre& fibre : fibres) {
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.done = fibre.at_barrier = false;
        makecontext(&fibre.context, enter, 0);
    }
    const size_t count = fibres.size();
    for (size_t round = 0, done = 0; done < count; ++round) {
        size_t waiting = 0;
        done = 0;
        for (size_t i = 0; i < count; ++i) {
            const size_t index = round % 2 ? count - 1 - i : i;
            Fibre& fibre = fibres[index];
            if (!fibre.done && !fibre.at_barrier) resume(fibre, index);
            done += fibre.done;
            waiting += !fibre.done && fibre.at_barrier;
        }
        if (done + waiting < count) continue;  // some exchange numbers with others of their warp
        if (done && waiting) return false;
        for (Fibre& fibre : fibres) fibre.at_barrier = false;
    }
    return true;
}

template <class... Parameters, size_t... I>
int launch(void (*kernel)(Parameters...), const unsigned* grid, const unsigned* block, void** arguments, int count,
           std::index_sequence<I...>)
{
    if (count != sizeof...(Parameters)) return 1;
    struct Call : Body {
        void (*kernel)(Parameters...);
        void** arguments;
        void operator()() override { kernel(*static_cast<std::remove_const_t<Parameters>*>(arguments[I])...); }
    } call;
    call.kernel = kernel;
    call.arguments = arguments;
    body = &call;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    std::vector<Fibre> fibres(blockDim.x * blockDim.y * blockDim.z);
    for (Fibre& fibre : fibres) fibre.stack.resize(32 << 10);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                if (!run_block(fibres)) return 2;
    return 0;
}

template <class... Parameters>
int launch(void (*kernel)(Parameters...), const unsigned* grid, const unsigned* block, void** arguments, int count)
{
    return launch(kernel, grid, block, arguments, count, std::index_sequence_for<Parameters...>());
}
