// Replays a plan of simulated_cycles.py in GPGPU-Sim: in the current folder, which has a gpgpusim.config too.
// Linked with the simulator's objects, without its libcudart: README.md says how. --timing-only: see gpgpu-sim.patch.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "cuda.h"
#include "cuda_runtime_api.h"
// after CUDA's
#include "cuda_api_object.h"
#include "gpgpu_context.h"
#include "../src/gpgpu-sim/gpu-sim.h"

gpgpu_context* GPGPU_Context();
CUctx_st* GPGPUSim_Context(gpgpu_context*);

using Bytes = std::vector<char>;
struct Buffer { char* address; size_t size; };
std::map<std::string, Buffer> buffers;

void need(bool given, const std::string& what)
{
    if (given) return;
    std::cerr << "plan: " << what << '\n';
    std::_Exit(1);
}

std::string word(std::istream& plan)
{
    std::string text;
    need(bool(plan >> text), "it ends amid a line");
    return text;
}

unsigned number(std::istream& plan) { return std::stoul(word(plan)); }

Bytes contents(const std::string& file)
{
    std::ifstream stream(file, std::ios::binary);
    need(bool(stream), "no file " + file);
    return {std::istreambuf_iterator<char>(stream), {}};
}

// BUFFER:OFFSET
char* address(const std::string& place)
{
    const size_t colon = place.find(':');
    const auto found = buffers.find(place.substr(0, colon));
    need(colon != std::string::npos && found != buffers.end(), "no place " + place);
    return found->second.address + std::stoull(place.substr(colon + 1));
}

void put(Bytes& bytes, size_t position, char* pointer)
{
    const uint64_t value = reinterpret_cast<uintptr_t>(pointer);
    need(position + sizeof value <= bytes.size(), "an address past the end of its value");
    std::memcpy(&bytes[position], &value, sizeof value);
}

Bytes argument(const std::string& text)
{
    if (text[0] == 'p') {
        Bytes bytes(sizeof(uint64_t));
        put(bytes, 0, address(text.substr(1)));
        return bytes;
    }
    Bytes bytes;
    size_t at = text.find('@'), end = std::min(at, text.size());
    for (size_t i = 1; i < end; i += 2) bytes.push_back(std::stoi(text.substr(i, 2), nullptr, 16));
    while (at != std::string::npos) {
        const size_t next = text.find('@', at + 1), equals = text.find('=', at);
        put(bytes, std::stoul(text.substr(at + 1)), address(text.substr(equals + 1, next - equals - 1)));
        at = next;
    }
    return bytes;
}

void fill(const std::string& name, const Bytes& bytes)
{
    Buffer buffer{nullptr, bytes.size()};
    cudaMalloc(reinterpret_cast<void**>(&buffer.address), buffer.size);
    cudaMemcpy(buffer.address, bytes.data(), buffer.size, cudaMemcpyHostToDevice);
    buffers[name] = buffer;
}

void load(gpgpu_context& simulator, CUctx_st& context, const std::string& file)
{
    symbol_table* symbols = simulator.gpgpu_ptx_sim_load_ptx_from_filename(file.c_str());
    context.add_binary(symbols, 1);
    gpgpu_t* gpu = context.get_device()->get_gpgpu();
    simulator.api->load_static_globals(symbols, 0xFFFFFFFF, 0xFFFFFFFF, gpu);
    simulator.api->load_constants(symbols, 0xFFFFFFFF, gpu);
    simulator.gpgpu_ptx_info_load_from_filename(file.c_str(), 75);  // asks ptxas for the registers
}

void launch(CUctx_st& context, std::istream& plan)
{
    static std::map<std::string, int> functions;  // whose keys' addresses stay
    const std::string& name = functions.emplace(word(plan), 0).first->first;
    unsigned size[7], count;
    for (unsigned& one : size) one = number(plan);
    count = number(plan);
    std::vector<Bytes> values;
    for (unsigned i = 0; i < count; ++i) values.push_back(argument(word(plan)));
    std::vector<void*> pointers;
    for (Bytes& value : values) pointers.push_back(value.data());
    context.register_function(1, name.c_str(), name.c_str());
    cuLaunchKernel((CUfunction)name.c_str(), size[0], size[1], size[2], size[3], size[4], size[5], size[6], nullptr,
                   pointers.data(), nullptr);
    cudaThreadSynchronize();
}

void read(const std::string& name, const std::string& file)
{
    const Buffer buffer = buffers.at(name);
    Bytes bytes(buffer.size);
    cudaMemcpy(bytes.data(), buffer.address, buffer.size, cudaMemcpyDeviceToHost);
    std::ofstream(file, std::ios::binary).write(bytes.data(), bytes.size());
}

int main(int count, char** words)
{
    if (count == 2 && words[1] == std::string("--timing-only")) setenv("TIMING_ONLY", "1", 1);
    gpgpu_context& simulator = *GPGPU_Context();
    CUctx_st& context = *GPGPUSim_Context(&simulator);
    std::ifstream plan("plan");
    need(bool(plan), "no such file here");
    for (std::string step; plan >> step;) {
        const std::string name = step == "launch" ? "" : word(plan);
        if (step == "buffer") fill(name, contents(word(plan)));
        else if (step == "ptx") load(simulator, context, name);
        else if (step == "launch") launch(context, plan);
        else if (step == "read") read(name, word(plan));
        else need(false, "what is " + step);
    }
    std::fflush(stdout);
    std::_Exit(0);  // the simulator's thread would go on
}
