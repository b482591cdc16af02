// cuBLASLt as its documentation has it, for matrices in the processor's memory: enough of it to multiply,
// and strict about what it is handed. Matrices lie column by column, `ld` elements apart.
//
// A stream is a struct log: the product of a stream writes down what it saw.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14, COMPUTE_32F = 68 };
enum { MAGIC_DESC = 0x64657363, MAGIC_LAYOUT = 0x6c61796f, MAGIC_PREFERENCE = 0x70726566, MAGIC_HANDLE = 0x68616e64 };

struct log { uint32_t num_products, num_heuristics, num_handles, num_living; uint64_t workspace, workspace_bytes; };

struct desc { int magic; int pointer_mode, transa, transb; };
struct layout { int magic; int type; uint64_t rows, cols; int64_t ld; };
struct preference { int magic; uint64_t workspace; uint32_t align[4]; };
struct result { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; };
struct handle { int magic; };

static uint32_t num_heuristics, num_handles, num_living;

int cublasLtCreate(struct handle** handle) {
    *handle = malloc(sizeof **handle);
    (*handle)->magic = MAGIC_HANDLE;
    num_handles++;
    return SUCCESS;
}

size_t cublasLtGetVersion(void) { return 131002; }

int cublasLtMatmulDescCreate(struct desc** desc, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != R_32F) return NOT_SUPPORTED;
    *desc = calloc(1, sizeof **desc);
    (*desc)->magic = MAGIC_DESC;
    num_living++;
    return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(struct desc* desc, int attribute, const void* value, size_t size) {
    if (desc->magic != MAGIC_DESC || size != 4) return INVALID_VALUE;
    int number = *(const int*)value;
    if (number < 0 || number > 1) return NOT_SUPPORTED;  // host, device; N, T
    switch (attribute) {
        case 2: desc->pointer_mode = number; return SUCCESS;
        case 3: desc->transa = number; return SUCCESS;
        case 4: desc->transb = number; return SUCCESS;
        default: return NOT_SUPPORTED;
    }
}

int cublasLtMatmulDescDestroy(struct desc* desc) {
    if (desc->magic != MAGIC_DESC) abort();
    desc->magic = 0;
    free(desc);
    num_living--;
    return SUCCESS;
}

int cublasLtMatrixLayoutCreate(struct layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (ld < (int64_t)rows) return INVALID_VALUE;
    *layout = malloc(sizeof **layout);
    **layout = (struct layout){MAGIC_LAYOUT, type, rows, cols, ld};
    num_living++;
    return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(struct layout* layout) {
    if (layout->magic != MAGIC_LAYOUT) abort();
    layout->magic = 0;
    free(layout);
    num_living--;
    return SUCCESS;
}

int cublasLtMatmulPreferenceCreate(struct preference** preference) {
    *preference = malloc(sizeof **preference);
    **preference = (struct preference){MAGIC_PREFERENCE, 0, {256, 256, 256, 256}};
    num_living++;
    return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(struct preference* preference, int attribute, const void* value, size_t size) {
    if (preference->magic != MAGIC_PREFERENCE) return INVALID_VALUE;
    if (attribute == 1 && size == 8) {
        preference->workspace = *(const uint64_t*)value;
        return SUCCESS;
    }
    if (attribute >= 5 && attribute <= 8 && size == 4) {
        preference->align[attribute - 5] = *(const uint32_t*)value;
        return SUCCESS;
    }
    return INVALID_VALUE;
}

int cublasLtMatmulPreferenceDestroy(struct preference* preference) {
    if (preference->magic != MAGIC_PREFERENCE) abort();
    preference->magic = 0;
    free(preference);
    num_living--;
    return SUCCESS;
}

static int are_shapes_right(const struct desc* desc, const struct layout* a, const struct layout* b,
                            const struct layout* c, const struct layout* d) {
    uint64_t m = desc->transa ? a->cols : a->rows, k = desc->transa ? a->rows : a->cols;
    uint64_t n = desc->transb ? b->rows : b->cols, k_of_b = desc->transb ? b->cols : b->rows;
    return desc->magic == MAGIC_DESC && a->magic == MAGIC_LAYOUT && b->magic == MAGIC_LAYOUT &&
           c->magic == MAGIC_LAYOUT && d->magic == MAGIC_LAYOUT && a->type == R_16BF && b->type == R_16BF &&
           c->type == R_32F && d->type == R_32F && k == k_of_b && c->rows == m && c->cols == n && d->rows == m &&
           d->cols == n;
}

// The algorithm names the product that it is for; one of a single output there is not. A workspace is
// wanted, if a small one.
int cublasLtMatmulAlgoGetHeuristic(struct handle* handle, struct desc* desc, struct layout* a, struct layout* b,
                                   struct layout* c, struct layout* d, struct preference* preference, int wanted,
                                   struct result* results, int* num_results) {
    if (handle->magic != MAGIC_HANDLE || preference->magic != MAGIC_PREFERENCE || wanted < 1) return INVALID_VALUE;
    num_heuristics++;
    *num_results = 0;
    if (!are_shapes_right(desc, a, b, c, d)) return INVALID_VALUE;
    if (preference->workspace < 1024) return NOT_SUPPORTED;
    if (d->rows == 1) return SUCCESS;
    memset(results, 0, sizeof *results);
    results->algo[0] = d->rows, results->algo[1] = d->cols, results->algo[2] = a->ld;
    for (int i = 0; i < 4; i++) results->algo[3 + i] = preference->align[i];
    results->workspace = 1024;
    results->state = SUCCESS;
    *num_results = 1;
    return SUCCESS;
}

static float of_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static float at(const void* matrix, const struct layout* layout, int is_transposed, uint64_t row, uint64_t column) {
    uint64_t place = is_transposed ? column + row * layout->ld : row + column * layout->ld;
    return of_bf16(((const uint16_t*)matrix)[place]);
}

int cublasLtMatmul(struct handle* handle, struct desc* desc, const void* alpha, const void* a, struct layout* la,
                   const void* b, struct layout* lb, const void* beta, const void* c, struct layout* lc, void* d,
                   struct layout* ld, const uint64_t* algo, void* workspace, size_t workspace_bytes, void* stream) {
    if (handle->magic != MAGIC_HANDLE || !are_shapes_right(desc, la, lb, lc, ld)) return INVALID_VALUE;
    if (algo[0] != ld->rows || algo[1] != ld->cols || algo[2] != (uint64_t)la->ld) return INVALID_VALUE;
    const void* pointers[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)pointers[i] % algo[3 + i]) return INVALID_VALUE;
    if (workspace_bytes < 1024 || (uintptr_t)workspace % 16) return INVALID_VALUE;
    memset(workspace, 0xee, workspace_bytes);
    // Where the factors lie, so many bytes from the weights' end on the device, or anywhere on the host.
    int is_behind = (uintptr_t)alpha == (uintptr_t)a + 2 * la->ld * la->cols;
    if (desc->pointer_mode != is_behind) return INVALID_VALUE;
    float factor, other;
    memcpy(&factor, alpha, 4), memcpy(&other, beta, 4);
    uint64_t k = desc->transa ? la->rows : la->cols;
    for (uint64_t column = 0; column < ld->cols; column++)
        for (uint64_t row = 0; row < ld->rows; row++) {
            double sum = 0;
            for (uint64_t i = 0; i < k; i++)
                sum += (double)at(a, la, desc->transa, row, i) * at(b, lb, desc->transb, i, column);
            float* out = (float*)d + row + column * ld->ld;
            float before = other == 0 ? 0 : other * ((const float*)c)[row + column * lc->ld];
            *out = (float)(factor * sum) + before;
        }
    struct log* log = stream;
    log->num_products++;
    log->num_heuristics = num_heuristics, log->num_handles = num_handles, log->num_living = num_living;
    log->workspace = (uintptr_t)workspace, log->workspace_bytes = workspace_bytes;
    return SUCCESS;
}
