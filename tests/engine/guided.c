/* The native engine under libFuzzer: inputs guided by the coverage of the compiled code. What an input is: see guided.py.
 *
 * By hand, in a copy of rcache, rcache_client and tests (TREE) with the _native.c that a build leaves in build/cython, and with
 * INCLUDE, LIBS and HOME those of the Python that is to run it:
 *
 *   clang -shared -fPIC -O1 -g -fno-omit-frame-pointer -fno-strict-aliasing -fsanitize=address,undefined,fuzzer-no-link \
 *     -fno-sanitize-recover=all -fno-sanitize=function -IINCLUDE _native.c -o TREE/rcache/engine/native/_native.SUFFIX.so -pthread
 *   clang -g -O1 -fsanitize=address,undefined,fuzzer -IINCLUDE guided.c -LLIBS -lpython3.11 -Wl,-rpath,LIBS -rdynamic -o guided
 *   python -m tests.engine.guided CORPUS        (with the ordinary build: inputs to begin with)
 *   cd TREE && PYTHONHOME=HOME PYTHONPATH=TREE:SITE_PACKAGES PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
 *     ./guided -max_len=3000 -seed=1 -max_total_time=600 -detect_leaks=0 CORPUS
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
static PyObject *one;
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc; (void)argv;
    Py_InitializeEx(0);
    PyObject *module = PyImport_ImportModule("tests.engine.guided");
    if (!module) { PyErr_Print(); abort(); }
    one = PyObject_GetAttrString(module, "one");
    if (!one) { PyErr_Print(); abort(); }
    return 0;
}
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    PyObject *done = PyObject_CallFunction(one, "y#", (const char *)data, (Py_ssize_t)size);
    if (!done) { PyErr_Print(); abort(); }
    Py_DECREF(done);
    return 0;
}
