"""The two hashes of a key: CRC-32 says its bucket, a keyed hash its place within the bucket.

What it is: CRC-32 (the polynomial of zlib and Ethernet, 0xEDB88320 reflected) by slicing-by-8 (Kounavis and Berry, "A
Systematic Approach to Building High Performance Software-based CRC Generators", 2005), and SipHash-1-3 (Aumasson and
Bernstein, "SipHash: a fast short-input PRF", 2012; the rounds of CPython's own).
Which thread runs it: any. What it owns: the tables, constant once made. What it must not know: what the bytes mean.

Why not zlib's: its headers are not on every machine that has a C compiler, and keys are too short for its vectors.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from * nogil:
    """
    static uint32_t rc_crc[8][256];

    static void rc_crc_init(void) {
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t c = n;
            for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
            rc_crc[0][n] = c;
        }
        for (int t = 1; t < 8; t++)
            for (uint32_t n = 0; n < 256; n++) rc_crc[t][n] = rc_crc[0][rc_crc[t - 1][n] & 0xFF] ^ (rc_crc[t - 1][n] >> 8);
    }

    static inline uint32_t rc_crc32(const uint8_t *p, size_t n) {
        uint32_t c = 0xFFFFFFFFu;
        for (; n >= 8; p += 8, n -= 8) {
            uint32_t a, b;
            memcpy(&a, p, 4);
            memcpy(&b, p + 4, 4);
            a ^= c;
            c = rc_crc[7][a & 0xFF] ^ rc_crc[6][a >> 8 & 0xFF] ^ rc_crc[5][a >> 16 & 0xFF] ^ rc_crc[4][a >> 24]
              ^ rc_crc[3][b & 0xFF] ^ rc_crc[2][b >> 8 & 0xFF] ^ rc_crc[1][b >> 16 & 0xFF] ^ rc_crc[0][b >> 24];
        }
        if (n >= 4) {
            uint32_t a;
            memcpy(&a, p, 4);
            a ^= c;
            c = rc_crc[3][a & 0xFF] ^ rc_crc[2][a >> 8 & 0xFF] ^ rc_crc[1][a >> 16 & 0xFF] ^ rc_crc[0][a >> 24];
            p += 4, n -= 4;
        }
        for (; n; p++, n--) c = rc_crc[0][(c ^ *p) & 0xFF] ^ (c >> 8);
        return ~c;
    }

    #define RC_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
    #define RC_SIPROUND \\
        v0 += v1; v2 += v3; v1 = RC_ROTL(v1, 13) ^ v0; v3 = RC_ROTL(v3, 16) ^ v2; v0 = RC_ROTL(v0, 32); \\
        v2 += v1; v0 += v3; v1 = RC_ROTL(v1, 17) ^ v2; v3 = RC_ROTL(v3, 21) ^ v0; v2 = RC_ROTL(v2, 32);

    static inline uint64_t rc_siphash(const uint64_t key[2], const uint8_t *p, size_t n) {
        uint64_t v0 = key[0] ^ 0x736f6d6570736575u, v1 = key[1] ^ 0x646f72616e646f6du;
        uint64_t v2 = key[0] ^ 0x6c7967656e657261u, v3 = key[1] ^ 0x7465646279746573u;
        uint64_t m, last = (uint64_t)n << 56;
        for (; n >= 8; p += 8, n -= 8) {
            memcpy(&m, p, 8);
            v3 ^= m; RC_SIPROUND v0 ^= m;
        }
        for (size_t i = 0; i < n; i++) last |= (uint64_t)p[i] << (8 * i);
        v3 ^= last; RC_SIPROUND v0 ^= last;
        v2 ^= 0xFF; RC_SIPROUND RC_SIPROUND RC_SIPROUND
        return v0 ^ v1 ^ v2 ^ v3;
    }
    """
    void crc_init "rc_crc_init"() noexcept
    uint32_t crc32 "rc_crc32"(const uint8_t *, size_t) noexcept
    uint64_t siphash "rc_siphash"(const uint64_t *key, const uint8_t *, size_t) noexcept
