/* A libnvidia-ml.so.1 of the tests' own: answers from the file nvml.scenario beside it.
 *
 * Lines of the scenario (read again whenever the file changes):
 *   BDF KEY VALUE          a value of one GPU, in the order of the GPUs' first lines; what is not
 *                          said is not supported. `BDF error 15`: every call about it gives that;
 *                          `BDF handle 15`: it is refused already when its handle is asked for;
 *                          `BDF hang KEY`: whoever asks for that value, or for its `handle`, hangs.
 *   * KEY VALUE            a value of the driver
 *   FUNCTION hang|crash|N  what a function does instead: never return, die, give the code N
 *   event BDF TYPE DATA    one event, delivered once, in order
 * With -DOLD_DRIVER it lacks what an older driver lacks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10 };
#define MAX_LINES 2048
#define MAX_GPUS 16

typedef unsigned int u32;
typedef unsigned long long u64;
struct line { char who[64], key[64], value[96]; };

static struct line lines[MAX_LINES];
static int line_count, events_given;
static char gpus[MAX_GPUS][64];
static int gpu_count;
static u64 registered[MAX_GPUS];
static struct timespec read_at;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void read_scenario(void)
{
    Dl_info info;
    char path[4096];
    struct stat st;
    dladdr((void *)read_scenario, &info);
    snprintf(path, sizeof path, "%s", info.dli_fname);
    strcpy(strrchr(path, '/') + 1, "nvml.scenario");
    if (stat(path, &st) || !memcmp(&st.st_mtim, &read_at, sizeof read_at))
        return;
    read_at = st.st_mtim;
    FILE *file = fopen(path, "r");
    char text[512];
    line_count = 0;
    while (file && fgets(text, sizeof text, file) && line_count < MAX_LINES) {
        struct line *l = &lines[line_count];
        memset(l, 0, sizeof *l);
        if (sscanf(text, "%63s %63s %95[^\n]", l->who, l->key, l->value) >= 2)
            line_count++;
    }
    if (file)
        fclose(file);
}

static const char *find(const char *who, const char *key)
{
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].who, who) && !strcmp(lines[i].key, key))
            return lines[i].value;
    return NULL;
}

/* What this function was told to do instead; OK if nothing. */
static int enter(const char *function)
{
    char told[64] = "";
    pthread_mutex_lock(&lock);
    read_scenario();
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].who, function))
            strcpy(told, lines[i].key);
    pthread_mutex_unlock(&lock);
    if (!strcmp(told, "hang"))
        for (;;)
            pause();
    if (!strcmp(told, "crash")) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        raise(SIGSEGV);
    }
    return atoi(told);
}

static void hang_if_told(int gpu, const char *key)
{
    pthread_mutex_lock(&lock);
    const char *told = find(gpus[gpu], "hang");
    int hangs = told && !strcmp(told, key);
    pthread_mutex_unlock(&lock);
    while (hangs)
        pause();
}

static int text_of(int gpu, const char *key, char *out, u32 size)
{
    hang_if_told(gpu, key);
    pthread_mutex_lock(&lock);
    const char *error = find(gpus[gpu], "error"), *value = find(gpus[gpu], key);
    int code = error ? atoi(error) : value ? OK : NOT_SUPPORTED;
    if (code == OK)
        snprintf(out, size, "%s", value);
    pthread_mutex_unlock(&lock);
    return code;
}

static int number_of(int gpu, const char *key, u64 *out)
{
    char text[96];
    int code = text_of(gpu, key, text, sizeof text);
    if (code == OK)
        *out = strtoull(text, NULL, 0);
    return code;
}

static int u32_of(int gpu, const char *key, u32 *out)
{
    u64 value;
    int code = number_of(gpu, key, &value);
    if (code == OK)
        *out = (u32)value;
    return code;
}

/* A handle is an odd pointer: whoever takes it for an index or a copy is found out. */
#define HANDLE(i) ((void *)(0x1001UL + 16UL * (i)))
#define INDEX(h) ((int)(((unsigned long)(h) - 0x1001UL) / 16))
#define ENTER() do { int told_ = enter(__func__); if (told_) return told_; } while (0)

int nvmlInitWithFlags(u32 flags)
{
    ENTER();
    if (flags != 3)
        return INVALID; /* NO_GPUS | NO_ATTACH is how a host without GPUs is asked */
    gpu_count = 0;
    for (int i = 0; i < line_count; i++) {
        int known = !strchr(lines[i].who, ':');
        for (int g = 0; g < gpu_count; g++)
            known |= !strcmp(gpus[g], lines[i].who);
        if (!known && gpu_count < MAX_GPUS)
            strcpy(gpus[gpu_count++], lines[i].who);
    }
    return OK;
}

int nvmlShutdown(void) { ENTER(); return OK; }

/* As nvml.h says of it: NOT_FOUND for an address that the driver has no GPU at, and the same
   errors as of a handle by its index (GPU_IS_LOST, UNKNOWN, NO_PERMISSION, INSUFFICIENT_POWER). */
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **handle)
{
    ENTER();
    int told_ = enter("nvmlDeviceGetHandleByIndex_v2");
    if (told_)
        return told_;
    for (int gpu = 0; gpu < gpu_count; gpu++)
        if (!strcasecmp(gpus[gpu], bus_id)) {
            const char *refused;
            hang_if_told(gpu, "handle");
            pthread_mutex_lock(&lock);
            refused = find(gpus[gpu], "handle");
            pthread_mutex_unlock(&lock);
            *handle = HANDLE(gpu);
            return refused ? atoi(refused) : OK;
        }
    return NOT_FOUND;
}

const char *nvmlErrorString(int code)
{
    static char text[32];
    snprintf(text, sizeof text, "shim error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *out, u32 size)
{
    ENTER();
    const char *value = find("*", "driver_version");
    if (!value)
        return NOT_SUPPORTED;
    snprintf(out, size, "%s", value);
    return OK;
}

#define TEXT(function, key) \
    int function(void *h, char *out, u32 size) { ENTER(); return text_of(INDEX(h), key, out, size); }
#define NUMBER(function, key) \
    int function(void *h, u32 *out) { ENTER(); return u32_of(INDEX(h), key, out); }

TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetSerial, "serial")
TEXT(nvmlDeviceGetName, "name")
NUMBER(nvmlDeviceGetArchitecture, "architecture")
NUMBER(nvmlDeviceGetPowerUsage, "power_mw")
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pages_pending")

int nvmlDeviceGetTemperature(void *h, int sensor, u32 *out)
{
    ENTER();
    (void)sensor;
    return u32_of(INDEX(h), "temperature_c", out);
}

struct memory { u64 total, free, used; };
int nvmlDeviceGetMemoryInfo(void *h, struct memory *out)
{
    ENTER();
    u64 mib, used = 0;
    int code = number_of(INDEX(h), "memory_mib", &mib);
    if (code == OK) {
        number_of(INDEX(h), "memory_used_mib", &used);
        *out = (struct memory){mib << 20, (mib - used) << 20, used << 20};
    }
    return code;
}

int nvmlDeviceGetClockInfo(void *h, int kind, u32 *out)
{
    ENTER();
    return kind == 1 ? u32_of(INDEX(h), "sm_clock_mhz", out) : NOT_SUPPORTED;
}

struct rates { u32 gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *h, struct rates *out)
{
    ENTER();
    out->memory = 0;
    return u32_of(INDEX(h), "utilization", &out->gpu);
}

int nvmlDeviceGetMigMode(void *h, u32 *now, u32 *later)
{
    ENTER();
    int code = u32_of(INDEX(h), "mig", now);
    *later = *now;
    return code;
}

int nvmlDeviceGetEccMode(void *h, u32 *now, u32 *later)
{
    ENTER();
    int code = u32_of(INDEX(h), "ecc", now);
    *later = *now;
    return code;
}

int nvmlDeviceGetTotalEccErrors(void *h, int kind, int counter, u64 *out)
{
    ENTER();
    char key[64];
    sprintf(key, "%s_%s", counter ? "aggregate" : "volatile", kind ? "uncorrected" : "corrected");
    return number_of(INDEX(h), key, out);
}

int nvmlDeviceGetRemappedRows(void *h, u32 *cor, u32 *unc, u32 *pending, u32 *failure)
{
    ENTER();
    char text[96];
    int code = text_of(INDEX(h), "remapped_rows", text, sizeof text);
    if (code == OK)
        sscanf(text, "%u %u %u %u", cor, unc, pending, failure);
    return code;
}

int nvmlDeviceGetNvLinkState(void *h, u32 link, u32 *out)
{
    ENTER();
    char text[96];
    u32 all, active;
    int code = text_of(INDEX(h), "nvlinks", text, sizeof text);
    if (code != OK)
        return code;
    sscanf(text, "%u %u", &all, &active);
    *out = link < active;
    return link < all ? OK : INVALID;
}

struct cc_state { u32 environment, feature, devtools; };
int nvmlSystemGetConfComputeState(struct cc_state *out)
{
    ENTER();
    const char *value = find("*", "cc");
    if (!value)
        return NOT_SUPPORTED;
    memset(out, 0, sizeof *out);
    sscanf(value, "%u %u", &out->feature, &out->devtools);
    return OK;
}

struct event { void *device; u64 type, data; u32 gpu_instance, compute_instance; };
int nvmlEventSetCreate(void **set) { ENTER(); *set = (void *)0x5001; return OK; }
int nvmlDeviceGetSupportedEventTypes(void *h, u64 *out)
{
    ENTER();
    return number_of(INDEX(h), "event_types", out);
}
int nvmlDeviceRegisterEvents(void *h, u64 types, void *set)
{
    ENTER();
    (void)set;
    registered[INDEX(h)] = types;
    return OK;
}

int nvmlEventSetWait_v2(void *set, struct event *out, u32 timeout_ms)
{
    (void)set;
    for (u32 waited = 0; waited <= timeout_ms; waited += 20) {
        ENTER();
        pthread_mutex_lock(&lock);
        int number = 0, given = 0;
        for (int i = 0; i < line_count && !given; i++) {
            if (strcmp(lines[i].who, "event") || number++ < events_given)
                continue;
            events_given++;
            memset(out, 0, sizeof *out);
            sscanf(lines[i].value, "%llu %llu", &out->type, &out->data);
            for (int g = 0; g < gpu_count; g++)
                if (!strcmp(gpus[g], lines[i].key) && registered[g] & out->type) {
                    out->device = HANDLE(g);
                    given = 1;
                }
        }
        pthread_mutex_unlock(&lock);
        if (given)
            return OK;
        usleep(20000);
    }
    return TIMEOUT;
}

#ifndef OLD_DRIVER
NUMBER(nvmlDeviceGetModuleId, "module_id")

int nvmlDeviceGetCurrentClocksEventReasons(void *h, u64 *out)
{
    ENTER();
    return number_of(INDEX(h), "clocks_event_reasons", out);
}

struct process { u32 pid; u64 used; u32 gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, u32 *count, struct process *out)
{
    ENTER();
    u64 pid;
    int code = number_of(INDEX(h), "process", &pid);
    if (code == NOT_SUPPORTED) {
        *count = 0;
        return OK;
    }
    if (code != OK)
        return code;
    if (*count < 1) {
        *count = 1;
        return INSUFFICIENT_SIZE;
    }
    *count = 1;
    out[0] = (struct process){(u32)pid, 512ULL << 20, ~0u, ~0u};
    return OK;
}

struct field { u32 id, scope; long long at, latency; u32 type, code; union { double d; u32 u; u64 ull; } value; };
int nvmlDeviceGetFieldValues(void *h, int count, struct field *out)
{
    ENTER();
    for (int i = 0; i < count; i++) {
        char key[64];
        u64 value = 0;
        sprintf(key, "field_%u", out[i].id);
        out[i].code = number_of(INDEX(h), key, &value);
        out[i].type = out[i].id == 230 ? 1 : 3;
        out[i].value.ull = value;
    }
    return OK;
}

struct fabric { u32 version; unsigned char cluster[16]; u32 status, clique, state, health; };
int nvmlDeviceGetGpuFabricInfoV(void *h, struct fabric *out)
{
    ENTER();
    if (out->version != 0x02000024)
        return 25;
    char text[96];
    int code = text_of(INDEX(h), "fabric", text, sizeof text);
    if (code == OK)
        sscanf(text, "%u %u %u %i", &out->state, &out->status, &out->clique, (int *)&out->health);
    return code;
}

struct sram { u32 version; u64 counts[11]; u32 exceeded; };
int nvmlDeviceGetSramEccErrorStatus(void *h, struct sram *out)
{
    ENTER();
    return out->version == 0x1000068 ? u32_of(INDEX(h), "sram_exceeded", &out->exceeded) : 25;
}

/* GPM, as nvml.h has it: a sample is opaque, and both structures have version 1, not their size. */
struct gpm_support { u32 version, supported; };
struct gpm_sample { int gpu; u32 number; };
struct gpm_metric { u32 id, code; double value; const char *short_name, *long_name, *unit; };
struct gpm_get { u32 version, count; struct gpm_sample *before, *after; struct gpm_metric metrics[]; };
_Static_assert(sizeof(struct gpm_metric) == 40 && sizeof(struct gpm_get) == 24, "nvml.h");
static u32 samples_taken;

int nvmlGpmQueryDeviceSupport(void *h, struct gpm_support *out)
{
    ENTER();
    return out->version == 1 ? u32_of(INDEX(h), "gpm", &out->supported) : 25;
}

int nvmlGpmSampleAlloc(struct gpm_sample **out)
{
    ENTER();
    *out = calloc(1, sizeof **out);
    return OK;
}

int nvmlGpmSampleFree(struct gpm_sample *sample) { ENTER(); free(sample); return OK; }

int nvmlGpmSampleGet(void *h, struct gpm_sample *sample)
{
    ENTER();
    u32 supported = 0;
    int code = u32_of(INDEX(h), "gpm", &supported);
    hang_if_told(INDEX(h), "gpm_sample");
    if (code == OK && !supported)
        code = NOT_SUPPORTED;
    if (code == OK)
        *sample = (struct gpm_sample){INDEX(h), ++samples_taken};
    return code;
}

int nvmlGpmMetricsGet(struct gpm_get *get)
{
    ENTER();
    if (get->version != 1)
        return 25;
    if (!get->before || !get->after || get->before->gpu != get->after->gpu
        || !get->before->number || get->before->number >= get->after->number)
        return INVALID;
    for (u32 i = 0; i < get->count; i++) {
        char text[96];
        struct gpm_metric *one = &get->metrics[i];
        one->code = one->id == 5 ? text_of(get->after->gpu, "tensor", text, sizeof text)
                                 : NOT_SUPPORTED;
        if (one->code == OK)
            one->value = strtod(text, NULL);
    }
    return OK;
}

struct cc_settings { u32 version, environment, feature, devtools, multi_gpu; };
int nvmlSystemGetConfComputeSettings(struct cc_settings *out)
{
    ENTER();
    const char *value = find("*", "cc");
    if (out->version != 0x1000014)
        return 25;
    if (!value)
        return NOT_SUPPORTED;
    sscanf(value, "%u %u %u", &out->feature, &out->devtools, &out->multi_gpu);
    return OK;
}
#endif
