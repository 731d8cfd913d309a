// A patch of an image in shared memory, laid out as it lies in global memory, so that 128-bit loads become 128-bit
// stores. Rows of the patch above and below the image are zeros; columns beside it are not staged at all, and read from
// words[0], which is zero.
//
//     STRETCH   whole rows, or whole planes, of one channel (or of all, side by side): one stretch of memory
//
//         global     |a a a a a a a|a a ... a|b b b ...             7 x 7 planes
//         shared     |0 0 0 0 0 0 0|a a a a a a a|a a ... a|0 0 0 0 0 0 0| . |0 0 0 0 0 0 0|b b b ...
//
//     PIECES    a piece of each row, where an image is wider than a block's tile
//     PIXELS    some channels of each pixel, where all lie side by side: channels last
//     ELEMENTS  one by one, whatever the strides
//
// A vector of 16 bytes begins in shared memory, too, where 16 bytes begin: the patch is shifted by up to a vector, and
// the launcher chooses pitches that leave planes and rows where they were modulo 16 bytes. A vector with the end of a
// plane or of a piece in it is stored word by word. Each thread has BATCH loads under way.
// Bank conflicts: none, but for the words of such vectors.
//
// Compiled with -DSTAGING, -DSIDE (channels side by side in the patch), -DSEVERAL (1: a patch has several planes),
// -DSHARED_WORDS (all the memory there is).

#pragma once

#include "problem.cuh"

enum Staging { STRETCH, PIECES, PIXELS, ELEMENTS };

constexpr int LOAD = 16 / sizeof(Element);  // elements in 128 bits
constexpr int TILE_AT = 8;                  // where the patch begins, before its shift
constexpr int BATCH = 4;

struct alignas(16) Pack { Element lane[LOAD]; };
struct alignas(16) Bits { unsigned part[4]; };

alignas(16) __shared__ Accumulator words[SHARED_WORDS];

// In PTX, because the compiler would take the vector apart and move its lanes to where each is used.
__device__ __forceinline__ Pack load_pack(const Element* from)
{
    Bits bits;
    unsigned (&part)[4] = bits.part;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3]) : "l"(from));
    return reinterpret_cast<Pack&>(bits);
}

// `place` is a multiple of VECTOR.
__device__ __forceinline__ void put_pack(int place, const Pack& pack)
{
    #pragma unroll
    for (int v = 0; v < LOAD; v += VECTOR) {
        Vector vector;
        #pragma unroll
        for (int i = 0; i < VECTOR; ++i) vector.lane[i] = widened(pack.lane[v + i]);
        reinterpret_cast<Vector&>(words[place + v]) = vector;
    }
}

// How many elements `pointer` lies behind a 16-byte boundary.
__device__ __forceinline__ int behind_boundary(const Element* pointer)
{
    return (unsigned)(reinterpret_cast<uint64>(pointer) / sizeof(Element)) % LOAD;
}

// Of `count` elements, `lead` of which lie before the first 16-byte vector: the one, if any, that this thread takes of
// those that are in no whole vector. -1 if none is left for it.
__device__ __forceinline__ int edge_element(int lead, int vectors, int count)
{
    const int lane = threadIdx.x % LOAD, before = lane < min(lead, count) ? lane : -1;
    const int behind = lead + vectors * LOAD + lane;
    return threadIdx.x < LOAD ? before : threadIdx.x < 2 * LOAD && behind < count ? behind : -1;
}

// Division by a number that the launcher knows: exact where dividend * divisor is below 2^32.
struct Divisor {
    unsigned divisor, multiplier;  // the multiplier is 2^32 / divisor, rounded up
    __device__ __forceinline__ unsigned of(unsigned number) const
    {
        return divisor == 1 ? number : (unsigned)((uint64)number * multiplier >> 32);
    }
};

struct Array {
    const Element* first;
    const Strides& strides;
    int N, C, H, W;
};

// Planes are numbered through all images, each of SIDE channels from `channel` on.
struct Plane {
    int n, channel;
    __device__ __forceinline__ Plane(unsigned number, int C)
    {
        const unsigned across = ceil_div(C, SIDE);
        n = number / across;
        channel = number % across * SIDE;
    }
};

struct Pitches {
    Divisor pieces;     // of a row: its vectors (PIECES), or its pixels (PIXELS)
    Divisor plane_size; // elements of a plane in global memory, where several are staged (STRETCH)
    int width;          // pixels of a staged row
    int row, plane;     // words from one to the next in shared memory
};

struct Patch {
    int plane, planes;  // the first, and how many
    int h, w, height;   // top left, which may lie outside the image
    int kept;           // rows, the first ones, that are staged already
    int top, bottom;    // rows [top, bottom) of the patch lie in the image and are to be staged

    __device__ __forceinline__ Patch(const Array& x, int plane, int planes, int h, int w, int height, int kept = 0)
        : plane(plane), planes(planes), h(h), w(w), height(height), kept(kept)
    {
        top = min(max(-h, kept), height);
        bottom = max(min(height, x.H - h), top);
    }
};

__device__ __forceinline__ int stage_stretch(int at, const Array& x, const Patch& patch, const Pitches& pitches)
{
    const Element* from = x.first + ((int64)patch.plane * x.H + patch.h + patch.top) * x.W * SIDE;
    const int length = (patch.bottom - patch.top) * x.W * SIDE, count = patch.planes * length;
    const int start = patch.top * pitches.row, ahead = behind_boundary(from), shift = (ahead - start) & (LOAD - 1);
    const int lead = (LOAD - ahead) % LOAD, vectors = count < lead ? 0 : (count - lead) / LOAD;
    const int apart = pitches.plane - length;  // in shared memory between two planes
    const auto plane_of = [&](int e) { return SEVERAL ? (int)pitches.plane_size.of(e) : 0; };
    at += shift + start;

    for (int first = threadIdx.x; first < vectors; first += BATCH * blockDim.x) {
        Pack packs[BATCH];
        #pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int index = first + b * blockDim.x;
            if (index < vectors) packs[b] = load_pack(from + lead + index * LOAD);
        }
        #pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int index = first + b * blockDim.x, e = lead + index * LOAD;
            if (index >= vectors) break;
            const int plane = plane_of(e);
            if (!SEVERAL || e + LOAD <= (plane + 1) * length) {
                put_pack(at + e + plane * apart, packs[b]);
            } else {
                #pragma unroll
                for (int i = 0; i < LOAD; ++i) words[at + e + i + plane_of(e + i) * apart] = widened(packs[b].lane[i]);
            }
        }
    }

    // What lies before the first whole vector, and behind the last.
    const int e = edge_element(lead, vectors, count);
    if (e >= 0) words[at + e + plane_of(e) * apart] = widened(from[e]);
    return shift;
}

// A vector may reach beside its piece, where the array has what it reads; an array's first and last few elements come
// one by one.
__device__ __forceinline__ int stage_pieces(int at, const Array& x, const Patch& patch, const Pitches& pitches)
{
    const int left = max(-patch.w, 0), right = min(pitches.width, x.W - patch.w);
    const int64 first = (((int64)patch.plane * x.H + patch.h + patch.top) * x.W + patch.w + left) * SIDE;
    const int64 behind = (int64)x.N * x.C * x.H * x.W - first;
    const Element* from = x.first + first;
    const int begin = first < LOAD ? -(int)first : -LOAD, end = behind < 0x40000000 ? (int)behind : 0x40000000;
    const int start = patch.top * pitches.row + left * SIDE, ahead = behind_boundary(from);
    const int shift = (ahead - start) & (LOAD - 1), length = (right - left) * SIDE;
    const int count = (patch.bottom - patch.top) * pitches.pieces.divisor;
    at += shift + start;

    for (int first_index = threadIdx.x; first_index < count; first_index += BATCH * blockDim.x) {
        Pack packs[BATCH];
        int rows[BATCH], places[BATCH];  // of a vector: its row, and its first lane's distance from the row's first
        #pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int index = first_index + b * blockDim.x;
            rows[b] = pitches.pieces.of(index);
            const Offset beginning = rows[b] * (Offset)x.W * SIDE;
            places[b] = (index - rows[b] * (int)pitches.pieces.divisor) * LOAD - (int)((beginning + ahead) % LOAD);
            if (index >= count) places[b] = length;
            const Offset e = beginning + places[b];
            if (places[b] < length && e >= begin && e + LOAD <= end) packs[b] = load_pack(from + e);
        }
        #pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const Offset e = rows[b] * (Offset)x.W * SIDE + places[b];
            const int place = at + rows[b] * pitches.row + places[b];
            if (places[b] >= length) continue;
            const bool loaded = e >= begin && e + LOAD <= end;
            if (loaded && places[b] >= 0 && places[b] + LOAD <= length) {
                put_pack(place, packs[b]);
            } else {
                #pragma unroll
                for (int i = 0; i < LOAD; ++i)
                    if ((unsigned)(places[b] + i) < (unsigned)length)
                        words[place + i] = widened(loaded ? packs[b].lane[i] : from[e + i]);
            }
        }
    }
    return shift;
}

// Every vector is whole and aligned: the launcher asks for that.
__device__ __forceinline__ void stage_pixels(int at, const Array& x, const Patch& patch, const Pitches& pitches)
{
    constexpr int PARTS = ceil_div(SIDE, LOAD);
    const Plane plane(patch.plane, x.C);
    const int64 pixel = ((int64)plane.n * x.H + patch.h + patch.top) * x.W + patch.w;
    const Element* from = x.first + pixel * x.C + plane.channel;
    const int channels = x.C - plane.channel, count = (patch.bottom - patch.top) * pitches.width * PARTS;
    at += patch.top * pitches.row;

    for (int first = threadIdx.x; first < count; first += BATCH * blockDim.x) {
        Pack packs[BATCH];
        int places[BATCH];
        #pragma unroll
        for (int b = 0; b < BATCH; ++b) {
            const int index = first + b * blockDim.x, pixel = index / PARTS, c = index % PARTS * LOAD;
            const int i = pitches.pieces.of(pixel), j = pixel - i * pitches.width;
            const bool wanted = index < count && (unsigned)(patch.w + j) < x.W && c < channels;
            places[b] = wanted ? at + i * pitches.row + j * SIDE + c : -1;
            if (wanted) packs[b] = load_pack(from + (i * (Offset)x.W + j) * x.C + c);
        }
        #pragma unroll
        for (int b = 0; b < BATCH; ++b)
            if (places[b] >= 0) put_pack(places[b], packs[b]);
    }
}

__device__ __forceinline__ void stage_elements(int at, const Array& x, const Patch& patch, const Pitches& pitches)
{
    const int left = max(-patch.w, 0), columns = max(min(pitches.width, x.W - patch.w) - left, 0);
    const int rows = patch.bottom - patch.top;
    const unsigned count = patch.planes * rows * columns * SIDE;
    for (unsigned index = threadIdx.x; index < count; index += blockDim.x) {
        const int c = index % SIDE, pixel = index / SIDE;
        const int j = left + pixel % columns, i = patch.top + pixel / columns % rows, number = pixel / columns / rows;
        const Plane plane(patch.plane + number, x.C);
        if (plane.channel + c < x.C)
            words[at + number * pitches.plane + i * pitches.row + j * SIDE + c] =
                widened(x.first[offset(x.strides, plane.n, plane.channel + c, patch.h + i, patch.w + j)]);
    }
}

__device__ __forceinline__ void stage_zeros(int at, const Array& x, const Patch& patch, const Pitches& pitches)
{
    const int above = patch.top - patch.kept;
    const unsigned missing = patch.height - patch.bottom + above, row_words = pitches.width * SIDE;
    for (unsigned index = threadIdx.x; index < patch.planes * missing * row_words; index += blockDim.x) {
        const int row = index / row_words, i = row % missing;
        words[at + row / missing * pitches.plane
              + (i < above ? patch.kept + i : i - above + patch.bottom) * pitches.row + index % row_words] = 0;
    }
    if (threadIdx.x == 0) words[0] = 0;
}

// Returns where in `words` the patch begins; a barrier must follow.
__device__ __forceinline__ int stage(int at, const Array& x, const Patch& patch, const Pitches& pitches)
{
    if constexpr (STAGING == STRETCH) at += stage_stretch(at, x, patch, pitches);
    if constexpr (STAGING == PIECES) at += stage_pieces(at, x, patch, pitches);
    if constexpr (STAGING == PIXELS) stage_pixels(at, x, patch, pitches);
    if constexpr (STAGING == ELEMENTS) stage_elements(at, x, patch, pitches);
    stage_zeros(at, x, patch, pitches);
    return at;
}

// Rows [step, patch.height) of a patch of one plane become its first ones: each thread takes whole columns, top row
// first, so none overwrites what another still needs. Nothing is staged beside the image, and nothing moved there.
// `at` stays right where the rows of a step come to whole 16-byte vectors. A barrier must come before and after.
constexpr int MOVED_AT_ONCE = 4;  // rows; `step` is at least as many

__device__ __forceinline__ void move_up(int at, const Array& x, const Patch& patch, const Pitches& pitches, int step)
{
    const int left = max(-patch.w, 0), right = min(pitches.width, x.W - patch.w), rows = patch.height - step;
    for (int column = left * SIDE + threadIdx.x; column < right * SIDE; column += blockDim.x)
        for (int first = 0; first < rows; first += MOVED_AT_ONCE) {
            Accumulator moved[MOVED_AT_ONCE];
            Accumulator* to = words + at + first * pitches.row + column;
            #pragma unroll
            for (int i = 0; i < MOVED_AT_ONCE; ++i)
                if (first + i < rows) moved[i] = to[(step + i) * pitches.row];
            #pragma unroll
            for (int i = 0; i < MOVED_AT_ONCE; ++i)
                if (first + i < rows) to[i * pitches.row] = moved[i];
        }
}
