// Logits of a GGUF file on a machine without Python.
//
//     logits FILE exact|default THREADS COUNT... < tokens > logits
//
// tokens: int32 ids; they are decoded COUNT at a time, so that prompts and single tokens take their own kernels.
// logits: float32, one row of the vocabulary's size for each token.
// exact: keys and values in float32 and plain attention; default: as llama.cpp chooses (float16, flash attention).
// The first line on stderr names the version of the factored layout and the processor features compiled in.

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

static void quiet(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static int fail(const char * what) {
    fprintf(stderr, "logits: %s\n", what);
    return 1;
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        return fail("usage: logits FILE exact|default THREADS COUNT... < tokens > logits");
    }
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    fprintf(stderr, "lowrank = %d | %s\n", llama_lowrank_version(), llama_print_system_info());

    std::vector<llama_token> tokens;
    for (llama_token token; fread(&token, sizeof(token), 1, stdin) == 1;) {
        tokens.push_back(token);
    }

    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return fail("cannot load the file");
    }
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));

    llama_context_params options = llama_context_default_params();
    options.n_ctx = options.n_batch = options.n_ubatch = tokens.size();
    options.n_threads = options.n_threads_batch = atoi(argv[3]);
    if (strcmp(argv[2], "exact") == 0) {
        options.type_k = options.type_v = GGML_TYPE_F32;
        options.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    llama_context * context = llama_init_from_model(model, options);
    if (!context) {
        return fail("no context");
    }

    size_t done = 0;
    for (int i = 4; i < argc; i++) {
        const size_t count = strtoul(argv[i], nullptr, 10);
        if (count == 0 || done + count > tokens.size()) {
            return fail("the counts do not fit the tokens");
        }
        llama_batch batch = llama_batch_init(count, 0, 1);
        batch.n_tokens = count;
        for (size_t j = 0; j < count; j++, done++) {
            batch.token[j] = tokens[done];
            batch.pos[j] = done;
            batch.n_seq_id[j] = 1;
            batch.seq_id[j][0] = 0;
            batch.logits[j] = true;
        }
        if (llama_decode(context, batch) != 0) {
            return fail("decoding failed");
        }
        fwrite(llama_get_logits(context), sizeof(float) * vocabulary, count, stdout);
        llama_batch_free(batch);
    }
    llama_free(context);
    llama_model_free(model);
    return done == tokens.size() ? 0 : fail("the counts do not fit the tokens");
}
