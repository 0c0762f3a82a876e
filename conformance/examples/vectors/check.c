/* Holds what a port wrote against test vectors, which `python -m conformance export --vectors DIR` writes.
 *   cc -O2 check.c -lm -o check && ./check DIR/float32.safetensors mine.safetensors [CASE]
 * mine.safetensors has F32 tensors called CASE/CALL/TAP. Exit status: 0 near enough, 1 too far, 2 cannot be judged.
 * Nothing that a header says is believed before the file bears it out. For little-endian machines. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VECTORS "{\"__metadata__\":{\"format\":\"t5g2ref-vectors\",\"version\":\"1\","
typedef struct { const char *path; char *header; uint8_t *bytes, *data; uint64_t size; } File;
typedef struct { int axes; uint64_t shape[8], count; const uint8_t *data; } Tensor;
static File vectors, mine;

static void stop(const File *f, const char *why) { fprintf(stderr, "%s: %s\n", f->path, why), exit(2); }
static int fail(const char *tap, const char *what) { return printf("FAIL %s: %s\n", tap, what), 1; }
static double number(Tensor t, uint64_t i) { float x; return memcpy(&x, t.data + 4 * i, 4), x; }

static void load(File *f, const char *path) { /* the header without its spaces, as text, and the data behind it */
    FILE *in = fopen(f->path = path, "rb");
    long whole = !in || fseek(in, 0, SEEK_END) ? -1 : ftell(in);
    uint8_t *bytes = f->bytes = whole < 8 || fseek(in, 0, SEEK_SET) ? NULL : malloc((size_t)whole);
    if (!bytes || fread(bytes, 1, (size_t)whole, in) != (size_t)whole) stop(f, "cannot be read");
    uint64_t length = 0, left = (uint64_t)whole - 8, n = 0;
    for (int i = 8; i--;) length = length << 8 | bytes[i];
    f->header = length > left ? NULL : calloc(length + 1, 1);
    if (!f->header) stop(f, "is no safetensors file: its header is longer than the file");
    for (uint64_t i = 0; i < length; i++) if (!strchr(" \n", bytes[8 + i])) f->header[n++] = (char)bytes[8 + i];
    f->data = bytes + 8 + length, f->size = left - length;
    fclose(in);
}
static int find(const File *f, const char *name, const char *more, const char *type, Tensor *t) { /* 1 if it is there */
    char key[400], entry[400] = "";
    snprintf(key, sizeof key, "\"%s%s\":{", name, more);
    const char *from = strstr(f->header, key), *to = from ? strchr(from, '}') : NULL;
    if (!to) return 0;
    if ((size_t)(to - from) >= sizeof entry) stop(f, "an entry of its header is too long");
    memcpy(entry, from, (size_t)(to - from));
    char *dtype = strstr(entry, "\"dtype\":\""), *axis = strstr(entry, "\"shape\":[");
    char *span = strstr(entry, "_offsets\":[");
    if (!dtype || !axis || !span) stop(f, "an entry of its header is incomplete");
    if (strncmp(dtype + 9, type, strlen(type)) || dtype[9 + strlen(type)] != '"') return t->data = NULL, 1;
    uint64_t begin = strtoull(span + 11, &span, 10), end = *span == ',' ? strtoull(span + 1, NULL, 10) : 0;
    t->count = 1, t->axes = 0;
    for (axis += 8; (*axis == '[' || *axis == ',') && axis[1] != ']' && t->axes < 8; t->count *= t->shape[t->axes++]) {
        uint64_t n = t->shape[t->axes] = strtoull(axis + 1, &axis, 10);
        if (n > f->size || (n && t->count > f->size / n)) stop(f, "a shape is larger than the file");
    }
    uint64_t width = type[0] == 'F' ? 4 : 1;
    if (begin > end || end > f->size || end - begin != t->count * width) stop(f, "a tensor lies where it cannot");
    return t->data = f->data + begin, 1;
}
static int judge(const char *tap) { /* 0 where the port is near enough */
    Tensor v, allowed, compared, m;
    uint64_t rows = 0, row = 0;
    if (!find(&vectors, tap, "", "F32", &v) || !find(&vectors, tap, "@allowed", "F32", &allowed)
        || !find(&vectors, tap, "@compared", "U8", &compared) || !v.data || !allowed.data || !compared.data
        || v.axes != 2 || allowed.count != v.shape[0] || !v.count || !compared.axes) stop(&vectors, "is incomplete");
    for (uint64_t t = 0; t < compared.count; t++) rows += compared.data[t] != 0;
    if (rows != v.shape[0]) stop(&vectors, "compares other tokens than it has");
    if (!find(&mine, tap, "", "F32", &m)) return fail(tap, "it is missing");
    if (!m.data) return fail(tap, "its dtype is not F32");
    uint64_t width = v.shape[1], last = compared.shape[compared.axes - 1];
    if (m.axes != compared.axes + 1 || memcmp(m.shape, compared.shape, 8 * (size_t)compared.axes)
        || m.shape[compared.axes] != width) return fail(tap, "its shape is wrong");
    for (uint64_t i = 0; i < m.count; i++) if (!isfinite(number(m, i))) return fail(tap, "it has a NaN or an infinity");
    for (uint64_t t = 0; t < compared.count; t++) {
        double sum = 0;
        if (!compared.data[t]) continue; /* padding, or left out to save room */
        for (uint64_t i = 0; i < width; i++) sum += pow(number(m, t * width + i) - number(v, row * width + i), 2);
        if (!(sqrt(sum) <= number(allowed, row))) /* so that a NaN fails */
            return printf("FAIL %s: token (%d, %d) is %.3g off, allowed %.3g\n", tap, (int)(t / last), (int)(t % last),
                          sqrt(sum), number(allowed, row)), 1;
        row++;
    }
    return 0;
}
int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) return fprintf(stderr, "usage: check VECTORS.safetensors MINE.safetensors [CASE]\n"), 2;
    load(&vectors, argv[1]), load(&mine, argv[2]);
    if (strncmp(vectors.header, VECTORS, strlen(VECTORS))) stop(&vectors, "these are no test vectors of version 1");
    size_t judged = 0, length = argc == 4 ? strlen(argv[3]) : 0;
    for (char *end = vectors.header; (end = strstr(end, "@compared\":{")); end++) { /* a tap each, in their order */
        char tap[300] = "", *begin = end;
        while (begin > vectors.header && begin[-1] != '"') begin--;
        if ((size_t)(end - begin) >= sizeof tap) stop(&vectors, "a name is too long");
        memcpy(tap, begin, (size_t)(end - begin));
        if (length && (strncmp(tap, argv[3], length) || tap[length] != '/')) continue;
        if (judge(tap)) return 1;
        judged++;
    }
    if (!judged) stop(&vectors, "there is no such case: nothing was judged");
    return printf("PASS %zu taps\n", judged), 0;
}
