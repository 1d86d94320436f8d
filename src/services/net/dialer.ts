// services/net/dialer.ts: how a guest reaches others by their names. What a name stands for is decided elsewhere
// (cell/switchboard.ts): a cell of its networks, or an address outside.

import type { StreamSocket } from './stream_socket.ts'

/** Makes connections on behalf of one guest. */
export interface Dialer {
  /** A connection to `name`, started; or an errno. Never rejected. */
  dial(name: string, port: number): Promise<StreamSocket | number>
}
