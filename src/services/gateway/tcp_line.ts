// services/gateway/tcp_line.ts: what one end of a TCP connection (tcp.ts) is joined to, and made with.

import type { Ring, RingMemory } from './ring.ts'

/** RFC 9293 §3.3.2. */
export type TcpState = 'CLOSED' | 'SYN_SENT' | 'SYN_RECEIVED' | 'ESTABLISHED' | 'FIN_WAIT_1' | 'FIN_WAIT_2' |
  'CLOSE_WAIT' | 'CLOSING' | 'LAST_ACK' | 'TIME_WAIT'

/** What a connection is joined to. */
export interface TcpLine {
  /** Sends a segment with `size` bytes of `ring` from `offset`. False: no room; when there is, `pump` is called. */
  send(seq: number, flags: number, ring: Ring | undefined, offset: number, size: number): boolean
  now(): number
  established(): void
  /** More of what was written has room. */
  writable(): void
  /** Last, once: 0 if both sides had ended, else an errno. */
  closed(errno: number): void
}

/** What an end is made with. */
export type TcpOptions = {
  readonly line: TcpLine
  readonly memory: RingMemory
  /** The first sequence number: nobody else is to guess it. */
  readonly iss: number
  /** The largest segment that we can take. */
  readonly mss: number
}
