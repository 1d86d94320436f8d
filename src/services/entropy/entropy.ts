// services/entropy/entropy.ts: random bytes for guests.

import { randomFillSync } from 'node:crypto'

/** A source of unpredictable bytes. */
export interface Entropy {
  fill(bytes: Uint8Array): void
}

/** The host's CSPRNG (OpenSSL's, seeded by getrandom(2)). */
export const hostEntropy: Entropy = { fill: (bytes) => void randomFillSync(bytes) }
