// services/entropy/entropy.ts: random bytes for guests.

/** A source of unpredictable bytes. */
export interface Entropy {
  fill(bytes: Uint8Array): void
}

/** The host's CSPRNG (OpenSSL's, seeded by getrandom(2)). Loaded at first use: it costs 5 ms of a guest's start. */
export const hostEntropy: Entropy = {
  fill(bytes) {
    randomFillSync ??= process.getBuiltinModule('node:crypto').randomFillSync
    randomFillSync(bytes)
  },
}

let randomFillSync: typeof import('node:crypto').randomFillSync | undefined
