// Logits of a GGUF from llama.cpp, for comparing with the goldens.
//
//   g++ -O2 -std=c++17 peer_logits.cpp -I $L/include -I $L/ggml/include -I $L/tools/mtmd \
//       -L $L/build/bin -Wl,-rpath,$L/build/bin -lllama -lmtmd -lggml -lggml-base -o peer_logits      (L = the checkout)
//   peer_logits model.gguf script out.f32 [mmproj.gguf]
//
// The script, one item a line:   ids 2 17 33 ...        tokens
//                                image FILE W H         raw RGB bytes, already of the model's square size
// out.f32 gets float32 [positions, vocab], one row per position, image positions too.
// With images, out.f32.embd gets the projected image rows. The KV cache is F32 (F16 with
// PEER_KV_F16 set), flash attention is off.
// PEER_BATCH=n decodes text n tokens at a time (default: all at once).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"
#include "mtmd.h"

static void quiet(ggml_log_level level, const char * text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

struct Item {
    std::vector<llama_token> ids;
    std::string file;
    int w = 0, h = 0;
};

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: peer_logits model.gguf script out.f32 [mmproj.gguf]\n");
        return 2;
    }
    llama_log_set(quiet, nullptr);
    mtmd_log_set(quiet, nullptr);
    llama_backend_init();

    std::vector<Item> items;
    std::ifstream in(argv[2]);
    for (std::string line; std::getline(in, line);) {
        std::istringstream s(line);
        std::string kind;
        s >> kind;
        Item it;
        if (kind == "ids") {
            for (long v; s >> v;) it.ids.push_back((llama_token) v);
        } else if (kind == "image") {
            s >> it.file >> it.w >> it.h;
        } else {
            continue;
        }
        items.push_back(it);
    }

    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 1;
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab);
    const int n_embd = llama_model_n_embd(model);

    const char * threads = getenv("OMP_NUM_THREADS");
    const int nt = threads ? atoi(threads) : 1;

    mtmd_context * mctx = nullptr;
    if (argc > 4) {
        mtmd_context_params p = mtmd_context_params_default();
        p.use_gpu = false;
        p.print_timings = false;
        p.n_threads = nt;
        p.warmup = false;
        p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
        mctx = mtmd_init_from_file(argv[4], model, p);
        if (!mctx) return 1;
    }

    // encode the images first: their token counts size the context
    std::vector<std::vector<float>> embd(items.size());
    int total = 0;
    for (size_t i = 0; i < items.size(); i++) {
        Item & it = items[i];
        if (it.file.empty()) {
            total += (int) it.ids.size();
            continue;
        }
        std::vector<unsigned char> rgb((size_t) it.w * it.h * 3);
        std::ifstream f(it.file, std::ios::binary);
        f.read((char *) rgb.data(), (std::streamsize) rgb.size());
        mtmd_bitmap * bmp = mtmd_bitmap_init(it.w, it.h, rgb.data());
        mtmd_input_part part{nullptr, bmp};
        const mtmd_input_part * parts[] = {&part};
        mtmd_input_chunks * chunks = mtmd_input_chunks_init();
        if (mtmd_tokenize_from_parts(mctx, chunks, parts, 1, false)) return 1;
        for (size_t c = 0; c < mtmd_input_chunks_size(chunks); c++) {
            const mtmd_input_chunk * ch = mtmd_input_chunks_get(chunks, c);
            if (mtmd_input_chunk_get_type(ch) != MTMD_INPUT_CHUNK_TYPE_IMAGE) continue;
            if (mtmd_encode_chunk(mctx, ch)) return 1;
            const size_t n = mtmd_input_chunk_get_n_tokens(ch);
            const float * e = mtmd_get_output_embd(mctx);
            embd[i].assign(e, e + n * n_embd);
            total += (int) n;
        }
        mtmd_input_chunks_free(chunks);
        mtmd_bitmap_free(bmp);
    }

    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = total + 64;
    const int step = getenv("PEER_BATCH") ? std::max(1, atoi(getenv("PEER_BATCH"))) : 1 << 30;
    cp.n_batch = cp.n_ubatch = mctx ? total + 64 : std::min(step, total + 64);  // an image must fit into one batch
    cp.n_threads = cp.n_threads_batch = nt;
    cp.type_k = cp.type_v = getenv("PEER_KV_F16") ? GGML_TYPE_F16 : GGML_TYPE_F32;
    cp.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * ctx = llama_init_from_model(model, cp);
    if (!ctx) return 1;

    FILE * out = fopen(argv[3], "wb");
    FILE * oute = mctx ? fopen((std::string(argv[3]) + ".embd").c_str(), "wb") : nullptr;
    int pos = 0;
    for (size_t i = 0; i < items.size(); i++) {
        Item & it = items[i];
        const bool image = !it.file.empty();
        const int n_all = image ? (int) (embd[i].size() / n_embd) : (int) it.ids.size();
        llama_set_causal_attn(ctx, !image);
        for (int o = 0; o < n_all;) {
            const int n = image ? n_all : std::min(step, n_all - o);
            llama_batch b = llama_batch_init(n, image ? n_embd : 0, 1);
            b.n_tokens = n;
            for (int k = 0; k < n; k++) {
                if (!image) b.token[k] = it.ids[o + k];
                b.pos[k] = pos + k;
                b.n_seq_id[k] = 1;
                b.seq_id[k][0] = 0;
                b.logits[k] = 1;
            }
            if (image) {
                std::copy(embd[i].begin(), embd[i].end(), b.embd);
                fwrite(embd[i].data(), sizeof(float), embd[i].size(), oute);
            }
            if (llama_decode(ctx, b)) return 1;
            for (int k = 0; k < n; k++) fwrite(llama_get_logits_ith(ctx, k), sizeof(float), n_vocab, out);
            llama_batch_free(b);
            pos += n;
            o += n;
        }
    }
    fclose(out);
    if (oute) fclose(oute);
    if (mctx) mtmd_free(mctx);
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
