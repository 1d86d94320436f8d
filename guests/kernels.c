// guests/kernels.c: classic small computations: what is slow under a translator shows in one of them.
//
//   kernels NAME [ROUNDS]   runs one and prints "NAME CHECKSUM"; without ROUNDS about 0.4 s on a machine of 2025
//   kernels list            prints the names, one a line
//
// Deterministic: the checksum depends on NAME and ROUNDS alone. Each kernel is one shape of code: calls (fib, queens,
// trees, indirect), a loop of a few instructions (xorshift, crc32, collatz), nested loops over memory (sieve, matmul,
// life, levenshtein, search), floats (nbody, mandelbrot, spectral), bytes (sha256, base64), branches that no predictor
// knows (quicksort, table, lz), and a switch in a loop (interpreter). No hypercall is made before the end.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KIB = 1024 };

static uint32_t random_state;

// Marsaglia's xorshift: the same numbers everywhere.
static inline uint32_t next_random(void) {
  uint32_t x = random_state;
  x ^= x << 13;
  x ^= x >> 17;
  return random_state = x ^ x << 5;
}

static inline uint32_t mix(uint32_t sum, uint32_t value) {
  return (sum ^ value) * 16777619;
}

static uint32_t mix_bytes(uint32_t sum, const uint8_t *bytes, uint32_t length) {
  for (uint32_t i = 0; i < length; i++) sum = mix(sum, bytes[i]);
  return sum;
}

static void *checked(void *allocated) {
  if (allocated == NULL) {
    fprintf(stderr, "kernels: out of memory\n");
    exit(1);
  }
  return allocated;
}

// Lower-case words of 1 to 8 letters, the first ones of the alphabet more often: what text is to a compressor.
static void write_text(uint8_t *text, uint32_t length) {
  random_state = 7;
  uint32_t left = 4;
  for (uint32_t i = 0; i < length; i++) {
    uint32_t r = next_random();
    text[i] = left == 0 ? ' ' : 'a' + ((r & 15) * (r >> 8 & 15) >> 4);
    left = left == 0 ? 1 + (r >> 16 & 7) : left - 1;
  }
}

// ---- calls

__attribute__((noinline)) static uint32_t fib_of(uint32_t n) {
  return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2);
}

static uint32_t fib(uint32_t rounds) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < rounds; i++) sum = mix(sum, fib_of(25 + (i & 1)));
  return sum;
}

__attribute__((noinline)) static uint32_t place_queens(uint32_t all, uint32_t columns, uint32_t left, uint32_t right) {
  if (columns == all) return 1;
  uint32_t count = 0;
  for (uint32_t free = all & ~(columns | left | right); free != 0; free &= free - 1) {
    uint32_t one = free & -free;
    count += place_queens(all, columns | one, (left | one) << 1, (right | one) >> 1);
  }
  return count;
}

static uint32_t queens(uint32_t rounds) {
  uint32_t sum = 0;
  for (uint32_t i = 0; i < rounds; i++) sum = mix(sum, place_queens((1u << (8 + i % 3)) - 1, 0, 0, 0));
  return sum;
}

typedef struct Node {
  struct Node *left, *right;
} Node;

static Node *grow_tree(uint32_t depth) {
  Node *node = checked(malloc(sizeof *node));
  node->left = depth > 0 ? grow_tree(depth - 1) : NULL;
  node->right = depth > 0 ? grow_tree(depth - 1) : NULL;
  return node;
}

static uint32_t fell_tree(Node *node) {
  if (node == NULL) return 0;
  uint32_t count = 1 + fell_tree(node->left) + fell_tree(node->right);
  free(node);
  return count;
}

static uint32_t trees(uint32_t rounds) {
  uint32_t sum = 0;
  Node *kept = grow_tree(14);
  for (uint32_t i = 0; i < rounds; i++) sum = mix(sum, fell_tree(grow_tree(4 + i % 10)));
  return mix(sum, fell_tree(kept));
}

typedef uint32_t operation(uint32_t, uint32_t);
static uint32_t op_add(uint32_t a, uint32_t b) { return a + b; }
static uint32_t op_xor(uint32_t a, uint32_t b) { return a ^ b; }
static uint32_t op_multiply(uint32_t a, uint32_t b) { return a * (b | 1); }
static uint32_t op_rotate(uint32_t a, uint32_t b) { return a << (b & 31) | a >> (-b & 31); }
static operation *volatile operations[4] = { op_add, op_xor, op_multiply, op_rotate };

static uint32_t indirect(uint32_t rounds) {
  uint32_t sum = 1;
  for (uint32_t i = 0; i < rounds * 10000; i++) sum = operations[sum >> 7 & 3](sum, i);
  return sum;
}

// ---- small loops

static uint32_t xorshift(uint32_t rounds) {
  random_state = 1;
  uint32_t sum = 0;
  for (uint32_t i = 0; i < rounds * 10000; i++) sum += next_random() & 0xff;
  return mix(sum, random_state);
}

static uint32_t collatz(uint32_t rounds) {
  uint32_t sum = 0;
  for (uint32_t i = 1; i <= rounds * 100; i++) {
    uint32_t steps = 0;
    for (uint64_t n = i; n != 1; steps++) n = n & 1 ? 3 * n + 1 : n >> 1;
    sum = mix(sum, steps);
  }
  return sum;
}

static uint32_t crc32(uint32_t rounds) {
  static uint32_t table[256];
  static uint8_t data[64 * KIB];
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xedb88320 ^ c >> 1 : c >> 1;
    table[i] = c;
  }
  write_text(data, sizeof data);
  uint32_t crc = ~0u;
  for (uint32_t round = 0; round < rounds; round++) {
    for (uint32_t i = 0; i < sizeof data; i++) crc = table[(crc ^ data[i]) & 0xff] ^ crc >> 8;
  }
  return ~crc;
}

// ---- loops over memory

static uint32_t sieve(uint32_t rounds) {
  enum { LIMIT = 1 << 16 };
  static uint8_t composite[LIMIT];
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    memset(composite, 0, LIMIT);
    uint32_t count = 0;
    for (uint32_t n = 2; n < LIMIT; n++) {
      if (composite[n]) continue;
      count++;
      for (uint32_t m = 2 * n; m < LIMIT; m += n) composite[m] = 1;
    }
    sum = mix(sum, count);
  }
  return sum;
}

static uint32_t matmul(uint32_t rounds) {
  enum { SIZE = 100 };
  static double a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];
  for (int i = 0; i < SIZE; i++) {
    for (int j = 0; j < SIZE; j++) {
      a[i][j] = i - j;
      b[i][j] = i + j;
    }
  }
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    a[round % SIZE][0] += 1;
    for (int i = 0; i < SIZE; i++) {
      for (int j = 0; j < SIZE; j++) {
        double dot = 0;
        for (int k = 0; k < SIZE; k++) dot += a[i][k] * b[k][j];
        c[i][j] = dot;
      }
    }
    sum = mix(sum, (uint32_t)(int64_t)(c[round % SIZE][3] + c[0][round % SIZE]));
  }
  return sum;
}

static uint32_t life(uint32_t rounds) {
  enum { SIZE = 128, MASK = SIZE - 1 };
  static uint8_t boards[2][SIZE][SIZE];
  random_state = 3;
  for (int y = 0; y < SIZE; y++) {
    for (int x = 0; x < SIZE; x++) boards[0][y][x] = (next_random() & 3) == 0;
  }
  for (uint32_t round = 0; round < rounds; round++) {
    uint8_t (*now)[SIZE] = boards[round & 1], (*next)[SIZE] = boards[~round & 1];
    for (int y = 0; y < SIZE; y++) {
      const uint8_t *up = now[(y - 1) & MASK], *here = now[y], *down = now[(y + 1) & MASK];
      for (int x = 0; x < SIZE; x++) {
        int west = (x - 1) & MASK, east = (x + 1) & MASK;
        int around = up[west] + up[x] + up[east] + here[west] + here[east] + down[west] + down[x] + down[east];
        next[y][x] = around == 3 || (around == 2 && here[x]);
      }
    }
  }
  return mix_bytes(rounds, boards[rounds & 1][0], SIZE * SIZE);
}

static uint32_t levenshtein(uint32_t rounds) {
  enum { LENGTH = 500 };
  static uint8_t text[2 * LENGTH];
  static uint32_t row[LENGTH + 1];
  write_text(text, sizeof text);
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    const uint8_t *a = text + round % LENGTH, *b = text + LENGTH - round % LENGTH;
    for (uint32_t j = 0; j <= LENGTH; j++) row[j] = j;
    for (uint32_t i = 0; i < LENGTH; i++) {
      uint32_t diagonal = row[0];
      row[0] = i + 1;
      for (uint32_t j = 0; j < LENGTH; j++) {
        uint32_t best = diagonal + (a[i] != b[j]);
        diagonal = row[j + 1];
        if (row[j] + 1 < best) best = row[j] + 1;
        if (diagonal + 1 < best) best = diagonal + 1;
        row[j + 1] = best;
      }
    }
    sum = mix(sum, row[LENGTH]);
  }
  return sum;
}

// Every place of the text is compared with the needle, as a memcmp would.
static uint32_t search(uint32_t rounds) {
  static uint8_t text[16 * KIB];
  write_text(text, sizeof text);
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    const uint8_t *needle = text + round * 31 % (sizeof text - 16);
    uint32_t length = 2 + round % 7, found = 0;
    for (uint32_t i = 0; i + length <= sizeof text; i++) {
      uint32_t same = 0;
      while (same < length && text[i + same] == needle[same]) same++;
      found += same == length;
    }
    sum = mix(sum, found);
  }
  return sum;
}

// ---- floats

typedef struct {
  double x, y, z, vx, vy, vz, mass;
} Body;

static const Body SUN_AND_PLANETS[5] = {
  { 0, 0, 0, 0, 0, 0, 39.47841760435743 },
  { 4.84143144246472090, -1.16032004402742839, -0.103622044471123109,
    0.606326392995832, 2.81198684491626, -0.02521836165988763, 0.037693674870389493 },
  { 8.34336671824457987, 4.12479856412430479, -0.403523417114321381,
    -1.0107743461787924, 1.8256623712304119, 0.008415761376584154, 0.011286326131968767 },
  { 12.8943695621391310, -15.1111514016986312, -0.223307578892655734,
    1.0827910064415354, 0.8687130181696082, -0.010832637401363636, 0.0017237240570597112 },
  { 15.3796971148509165, -25.9193146099879641, 0.179258772950371181,
    0.979090732243898, 0.5946989986476762, -0.034755955504078104, 0.0020336868699246304 },
};

static uint32_t nbody(uint32_t rounds) {
  Body bodies[5];
  memcpy(bodies, SUN_AND_PLANETS, sizeof bodies);
  for (uint32_t step = 0; step < rounds * 100; step++) {
    for (int i = 0; i < 5; i++) {
      Body *a = &bodies[i];
      for (int j = i + 1; j < 5; j++) {
        Body *b = &bodies[j];
        double dx = a->x - b->x, dy = a->y - b->y, dz = a->z - b->z;
        double square = dx * dx + dy * dy + dz * dz;
        double pull = 0.01 / (square * sqrt(square));
        a->vx -= dx * b->mass * pull;
        a->vy -= dy * b->mass * pull;
        a->vz -= dz * b->mass * pull;
        b->vx += dx * a->mass * pull;
        b->vy += dy * a->mass * pull;
        b->vz += dz * a->mass * pull;
      }
    }
    for (int i = 0; i < 5; i++) {
      bodies[i].x += 0.01 * bodies[i].vx;
      bodies[i].y += 0.01 * bodies[i].vy;
      bodies[i].z += 0.01 * bodies[i].vz;
    }
  }
  uint32_t sum = 0;
  for (int i = 0; i < 5; i++) sum = mix(sum, (uint32_t)(int64_t)(bodies[i].x * 1e6));
  return sum;
}

static uint32_t mandelbrot(uint32_t rounds) {
  enum { SIZE = 64, ITERATIONS = 100 };
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    for (int row = 0; row < SIZE; row++) {
      for (int column = 0; column < SIZE; column++) {
        double cx = column * 3.0 / SIZE - 2 + round * 1e-5, cy = row * 2.0 / SIZE - 1, x = 0, y = 0;
        uint32_t n = 0;
        for (; n < ITERATIONS && x * x + y * y < 4; n++) {
          double next = x * x - y * y + cx;
          y = 2 * x * y + cy;
          x = next;
        }
        sum = mix(sum, n);
      }
    }
  }
  return sum;
}

enum { SPECTRAL = 100 };

static inline double spectral_at(int i, int j) {
  return 1.0 / ((i + j) * (i + j + 1) / 2 + i + 1);
}

static void spectral_multiply(const double *from, double *to) {
  double between[SPECTRAL];
  for (int i = 0; i < SPECTRAL; i++) {
    between[i] = 0;
    for (int j = 0; j < SPECTRAL; j++) between[i] += spectral_at(i, j) * from[j];
  }
  for (int i = 0; i < SPECTRAL; i++) {
    to[i] = 0;
    for (int j = 0; j < SPECTRAL; j++) to[i] += spectral_at(j, i) * between[j];
  }
}

static uint32_t spectral(uint32_t rounds) {
  double u[SPECTRAL], v[SPECTRAL];
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    for (int i = 0; i < SPECTRAL; i++) u[i] = 1 + (int)(round & 7);
    for (int i = 0; i < 5; i++) {
      spectral_multiply(u, v);
      spectral_multiply(v, u);
    }
    double uv = 0, vv = 0;
    for (int i = 0; i < SPECTRAL; i++) {
      uv += u[i] * v[i];
      vv += v[i] * v[i];
    }
    sum = mix(sum, (uint32_t)(sqrt(uv / vv) * 1e9));
  }
  return sum;
}

// ---- bytes and branches

static inline uint32_t rotate_right(uint32_t x, int by) {
  return x >> by | x << (32 - by);
}

static void sha256_block(uint32_t *state, const uint32_t *constants, const uint8_t *block) {
  uint32_t w[64], s[8];
  for (int i = 0; i < 16; i++, block += 4) {
    w[i] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
  }
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate_right(a, 7) ^ rotate_right(a, 18) ^ a >> 3) + w[i - 7] +
      (rotate_right(b, 17) ^ rotate_right(b, 19) ^ b >> 10);
  }
  memcpy(s, state, sizeof s);
  for (int i = 0; i < 64; i++) {
    uint32_t t1 = s[7] + (rotate_right(s[4], 6) ^ rotate_right(s[4], 11) ^ rotate_right(s[4], 25)) +
      ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
    uint32_t t2 = (rotate_right(s[0], 2) ^ rotate_right(s[0], 13) ^ rotate_right(s[0], 22)) +
      ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += t1;
    s[0] = t1 + t2;
  }
  for (int i = 0; i < 8; i++) state[i] += s[i];
}

// Of ROUNDS · 4 KiB of text without the padding of the end. The constants are the roots of the first primes.
static uint32_t sha256(uint32_t rounds) {
  static uint8_t data[4 * KIB];
  uint32_t constants[64], state[8];
  write_text(data, sizeof data);
  for (uint32_t n = 2, count = 0; count < 64; n++) {
    uint32_t factor = 2;
    while (factor * factor <= n && n % factor != 0) factor++;
    if (factor * factor <= n) continue;
    double root = cbrt(n), square = sqrt(n);
    constants[count] = (uint32_t)((root - floor(root)) * 4294967296.0);
    if (count < 8) state[count] = (uint32_t)((square - floor(square)) * 4294967296.0);
    count++;
  }
  for (uint32_t round = 0; round < rounds; round++) {
    for (uint32_t at = 0; at < sizeof data; at += 64) sha256_block(state, constants, data + at);
  }
  return state[0];
}

static void sort(uint32_t *values, int low, int high) {
  while (low < high) {
    uint32_t pivot = values[(low + high) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (values[i] < pivot) i++;
      while (values[j] > pivot) j--;
      if (i > j) break;
      uint32_t value = values[i];
      values[i++] = values[j];
      values[j--] = value;
    }
    // The smaller part by a call, so that the stack stays small.
    if (j - low < high - i) {
      sort(values, low, j);
      low = i;
    } else {
      sort(values, i, high);
      high = j;
    }
  }
}

static uint32_t quicksort(uint32_t rounds) {
  enum { COUNT = 10000 };
  static uint32_t values[COUNT];
  uint32_t sum = 0;
  random_state = 5;
  for (uint32_t round = 0; round < rounds; round++) {
    for (int i = 0; i < COUNT; i++) values[i] = next_random();
    sort(values, 0, COUNT - 1);
    for (int i = 1; i < COUNT; i++) sum += values[i - 1] > values[i];
    sum = mix(sum, values[round % COUNT]);
  }
  return sum;
}

static uint32_t base64(uint32_t rounds) {
  static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  static uint8_t plain[12 * KIB], coded[16 * KIB], value_of[256];
  for (uint8_t i = 0; i < 64; i++) value_of[(uint8_t)ALPHABET[i]] = i;
  write_text(plain, sizeof plain);
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    for (uint32_t from = 0, to = 0; from < sizeof plain; from += 3, to += 4) {
      uint32_t bits = (uint32_t)plain[from] << 16 | (uint32_t)plain[from + 1] << 8 | plain[from + 2];
      for (int i = 0; i < 4; i++) coded[to + i] = ALPHABET[bits >> (18 - 6 * i) & 63];
    }
    for (uint32_t from = 0, to = 0; from < sizeof coded; from += 4, to += 3) {
      uint32_t bits = 0;
      for (int i = 0; i < 4; i++) bits = bits << 6 | value_of[coded[from + i]];
      for (int i = 0; i < 3; i++) plain[to + i] = bits >> (16 - 8 * i);
    }
    plain[round % sizeof plain] ^= coded[round % sizeof coded];
    sum = mix(sum, coded[round * 7 % sizeof coded]);
  }
  return mix_bytes(sum, plain, sizeof plain);
}

// Counts words in an open hash table that doubles when it is half full.
static uint32_t table(uint32_t rounds) {
  uint32_t size = 16, used = 0, sum = 0;
  uint64_t *slots = checked(calloc(size, sizeof *slots));
  random_state = 11;
  for (uint32_t i = 0; i < rounds * 1000; i++) {
    uint32_t key = (next_random() & 0xfffff) + 1, at = key * 2654435761u & (size - 1);
    while (slots[at] != 0 && slots[at] >> 32 != key) at = (at + 1) & (size - 1);
    if (slots[at] == 0) used++;
    slots[at] = (uint64_t)key << 32 | ((uint32_t)slots[at] + 1);
    sum = mix(sum, (uint32_t)slots[at]);
    if (2 * used < size) continue;
    uint64_t *larger = checked(calloc(2 * size, sizeof *larger));
    for (uint32_t old = 0; old < size; old++) {
      if (slots[old] == 0) continue;
      uint32_t to = (uint32_t)(slots[old] >> 32) * 2654435761u & (2 * size - 1);
      while (larger[to] != 0) to = (to + 1) & (2 * size - 1);
      larger[to] = slots[old];
    }
    free(slots);
    slots = larger;
    size *= 2;
  }
  free(slots);
  return mix(sum, used);
}

enum { LZ_BYTES = 32 * KIB };

// A match is 0x80 + length - 4, then the distance in two bytes; a literal stands for itself, as text is below 0x80.
static uint32_t lz_pack(const uint8_t *from, uint8_t *to) {
  static uint16_t last[4 * KIB];
  memset(last, 0, sizeof last);
  uint32_t out = 0;
  for (uint32_t at = 0; at < LZ_BYTES;) {
    uint32_t length = 0, distance = 0;
    if (at + 4 <= LZ_BYTES) {
      uint32_t word;
      memcpy(&word, from + at, 4);
      uint16_t *head = &last[word * 2654435761u >> 20];
      distance = at - *head;
      *head = (uint16_t)at;
      while (distance > 0 && length < 131 && at + length < LZ_BYTES &&
        from[at + length] == from[at + length - distance]) length++;
    }
    if (length < 4) {
      to[out++] = from[at++];
      continue;
    }
    to[out++] = 0x80 + (uint8_t)(length - 4);
    to[out++] = distance >> 8;
    to[out++] = distance & 0xff;
    at += length;
  }
  return out;
}

static uint32_t lz_unpack(const uint8_t *from, uint32_t length, uint8_t *to) {
  uint32_t out = 0;
  for (uint32_t at = 0; at < length;) {
    if (from[at] < 0x80) {
      to[out++] = from[at++];
      continue;
    }
    uint32_t distance = (uint32_t)from[at + 1] << 8 | from[at + 2];
    for (uint32_t left = from[at] - 0x80u + 4; left > 0; left--, out++) to[out] = to[out - distance];
    at += 3;
  }
  return out;
}

static uint32_t lz(uint32_t rounds) {
  static uint8_t plain[LZ_BYTES], packed[LZ_BYTES], unpacked[LZ_BYTES];
  write_text(plain, LZ_BYTES);
  uint32_t sum = 0;
  for (uint32_t round = 0; round < rounds; round++) {
    plain[round * 77 % LZ_BYTES] = 'a' + round % 26;
    uint32_t length = lz_pack(plain, packed);
    uint32_t back = lz_unpack(packed, length, unpacked);
    sum = mix(sum, back == LZ_BYTES && memcmp(plain, unpacked, LZ_BYTES) == 0 ? length : 0);
  }
  return sum;
}

// ---- an interpreter

enum Code { LOAD, ADD, SUBTRACT, MULTIPLY, REMAINDER, XOR, MOVE, JUMP_IF, JUMP, HALT };

typedef struct {
  uint8_t code, target, a, b;
} Instruction;

// Euclid's algorithm for many pairs: r0 counts down, r1 is the sum, r2 and r3 the pair.
static const Instruction PROGRAM[] = {
  { LOAD, 5, 1, 0 }, { LOAD, 6, 97, 0 }, { LOAD, 7, 31, 0 },
  { MULTIPLY, 2, 0, 6 }, { ADD, 3, 0, 7 },
  { REMAINDER, 4, 2, 3 }, { MOVE, 2, 3, 0 }, { MOVE, 3, 4, 0 }, { JUMP_IF, 5, 3, 0 },
  { ADD, 1, 1, 2 }, { MULTIPLY, 1, 1, 7 }, { XOR, 1, 1, 0 },
  { SUBTRACT, 0, 0, 5 }, { JUMP_IF, 3, 0, 0 }, { JUMP, 15, 0, 0 }, { HALT, 1, 0, 0 },
};

static uint32_t interpreter(uint32_t rounds) {
  uint32_t registers[8] = { rounds * 1000 };
  for (uint32_t at = 0;;) {
    Instruction now = PROGRAM[at++];
    uint32_t a = registers[now.a & 7], b = registers[now.b & 7], *target = &registers[now.target & 7];
    switch ((enum Code)now.code) {
      case LOAD: *target = now.a; break;
      case ADD: *target = a + b; break;
      case SUBTRACT: *target = a - b; break;
      case MULTIPLY: *target = a * b; break;
      case REMAINDER: *target = b == 0 ? 0 : a % b; break;
      case XOR: *target = a ^ b; break;
      case MOVE: *target = a; break;
      case JUMP_IF: if (a != 0) at = now.target; break;
      case JUMP: at = now.target; break;
      case HALT: return *target;
    }
  }
}

// ---- the list

typedef struct {
  const char *name;
  uint32_t (*run)(uint32_t rounds);
  uint32_t rounds;
} Kernel;

static const Kernel KERNELS[] = {
  { "fib", fib, 1300 }, { "queens", queens, 4500 }, { "trees", trees, 8000 },
  { "indirect", indirect, 45000 }, { "xorshift", xorshift, 25000 }, { "collatz", collatz, 30000 },
  { "crc32", crc32, 2500 }, { "sieve", sieve, 2800 }, { "matmul", matmul, 1200 },
  { "life", life, 8000 }, { "levenshtein", levenshtein, 1000 }, { "search", search, 10000 },
  { "nbody", nbody, 75000 }, { "mandelbrot", mandelbrot, 1300 }, { "spectral", spectral, 1700 },
  { "sha256", sha256, 11000 }, { "quicksort", quicksort, 600 }, { "base64", base64, 33000 },
  { "table", table, 12000 }, { "lz", lz, 2200 }, { "interpreter", interpreter, 2700 },
};

int main(int argc, char **argv) {
  const char *name = argc > 1 ? argv[1] : "list";
  for (size_t i = 0; i < sizeof KERNELS / sizeof *KERNELS; i++) {
    const Kernel *kernel = &KERNELS[i];
    if (strcmp(name, "list") == 0) puts(kernel->name);
    if (strcmp(name, kernel->name) != 0) continue;
    uint32_t rounds = argc > 2 ? strtoul(argv[2], NULL, 10) : kernel->rounds;
    printf("%s %u\n", name, kernel->run(rounds));
    return 0;
  }
  if (strcmp(name, "list") == 0) return 0;
  fprintf(stderr, "kernels: no kernel is called \"%s\": see kernels list\n", name);
  return 2;
}
