// machine/agent_protocol.ts: what the host and a machine's agent say to each other, as tables.
//
//   0  FRAME_MARK, u8      1  kind, u8      2  0, u16      4  id, u32      8  length of the body, u32
//  12  the body            then the session's tag, u32     all little-endian
//
// One stream carries everything. An id is a session's (exec, get, put, connect) or a request's; those that the guest
// begins have the topmost bit. Ours and the guest's idea of the stream part when a machine goes on from a snapshot or a
// host anew: each was in the middle of a frame that the other knows nothing of. So the host begins a session with as
// many zeros as the longest frame has, which fill up whatever the agent was reading, and a hello with a tag; a frame
// with another tag is of another session, and ignored. In the other direction we look for our own nonce, which nobody
// could have sent before. (A vsock connection would begin anew by itself; a virtio-serial port doesn't.)
//
// The agent may be anything: a length beyond the limit, an unknown kind, a body that isn't what the table says are
// errors, after which nothing on the line can be understood. guests/agent/protocol.h has the same numbers.

/** The numbers of the format itself. */
export const FRAME_MARK = 0xc5
export const HEADER_BYTES = 12
const TAG_BYTES = 4
/** Bytes of a frame's body: a command with its arguments and variables is one. */
export const BODY_BYTES_MAX = 64 * 1024
export const FRAME_BYTES_MAX = HEADER_BYTES + BODY_BYTES_MAX + TAG_BYTES
/** What we read of other sessions until our hello is answered: what an agent and a transport may hold, and more. */
export const SCAN_BYTES_MAX = 4 * 1024 * 1024
export const AGENT_PROTOCOL_VERSION = 1
/** Bytes of a session that its writer may send before its reader has granted more: to the guest, and from it. */
export const INPUT_WINDOW_BYTES = 64 * 1024
export const OUTPUT_WINDOW_BYTES = 256 * 1024
/** Ids of the guest's have this bit. */
export const GUEST_ID = 0x8000_0000

/** What a field is: numbers, 16 bytes as hex, text after its length (u16), many of them after their number (u16). */
type Fields = {
  u8: number; u16: number; u32: number; u64: number; hex16: string; text: string; texts: readonly string[]
  /** The rest of the body. */
  bytes: Uint8Array
}
type Layout = Readonly<Record<string, keyof Fields>>
type ValuesOf<L extends Layout> = { readonly [Name in keyof L]: Fields[L[Name]] }

/** Host → guest: number and body. */
export const TO_GUEST = {
  hello: [1, { version: 'u32', tag: 'u32', nonce: 'hex16', generation: 'hex16' }],
  /** `flags`: EXEC_TTY, EXEC_NO_INPUT. `user`: '' for the agent's own; `cwd`: '' for the root. */
  exec: [2, { flags: 'u8', cols: 'u16', rows: 'u16', user: 'text', cwd: 'text', argv: 'texts', env: 'texts' }],
  /** An archive (tar) of the path is its output; its input is one, unpacked in the path. */
  get: [3, { path: 'text' }],
  put: [4, { path: 'text' }],
  input: [5, { bytes: 'bytes' }],
  eof: [6, {}],
  credit: [7, { bytes: 'u32' }],
  signal: [8, { signal: 'u32' }],
  resize: [9, { cols: 'u16', rows: 'u16' }],
  /** Nobody looks any more. */
  close: [10, {}],
  /** `how`: one of STOPS. Answered by `done`, as is `event`. */
  stop: [11, { how: 'u8' }],
  /** `kind` as in sdk/c/cellar.h; `at`: milliseconds since 1970, 0: leave the clock; `hostname`: '' leaves it. */
  event: [12, { kind: 'u8', number: 'u32', at: 'u64', generation: 'hex16', hostname: 'text', entropy: 'bytes' }],
  ping: [13, {}],
  answer: [14, { errno: 'u32', value: 'u32', bytes: 'bytes' }],
} as const satisfies Table

/** Guest → host. Errno are Linux's here. */
export const FROM_GUEST = {
  /** `source`: which sources the agent was built from. */
  hello: [65, { version: 'u32', nonce: 'hex16', source: 'text', system: 'text', release: 'text', arch: 'text',
    hostname: 'text' }],
  /** `channel`: STDOUT or STDERR of host/protocol.ts. */
  output: [66, { channel: 'u8', bytes: 'bytes' }],
  /** Of a connection that the guest asked for: it sends no more. */
  eof: [67, {}],
  /** `kind`: one of ENDS; `value`: a status, a signal, an errno. */
  exit: [68, { kind: 'u8', value: 'u32' }],
  credit: [69, { bytes: 'u32' }],
  pong: [70, {}],
  /** `did`: of an event, what was done: DID_… of protocol.h. */
  done: [71, { errno: 'u32', did: 'u32' }],
  /** `what`: one of ASKS; `value`: a count, a port; `text`: a name. */
  request: [72, { what: 'u8', value: 'u32', text: 'text' }],
} as const satisfies Table

type Table = Readonly<Record<string, readonly [number, Layout]>>

export const EXEC_TTY = 1
export const EXEC_NO_INPUT = 2
export const ENDS = ['exited', 'signalled', 'failed'] as const
export const STOPS = ['poweroff', 'reboot'] as const
export const ASKS = ['metadata', 'snapshot', 'fork', 'hibernate', 'connect'] as const

type FrameOf<T extends Table> = {
  [Name in keyof T]: { readonly name: Name; readonly id: number } & ValuesOf<T[Name][1]>
}[keyof T]

/** What an agent has said. `bytes` may share memory with the chunk that they came in. */
export type GuestFrame = FrameOf<typeof FROM_GUEST>
type ToGuest = typeof TO_GUEST

/** Something came that no agent says. */
export class BadAgentFrame extends Error {
  override readonly name = 'BadAgentFrame'
}

/** A frame for the guest. Throws RangeError if it is too large. */
export function encodeFrame<N extends keyof ToGuest>(
  name: N, id: number, values: ValuesOf<ToGuest[N][1]>, tag: number,
): Buffer {
  const [kind, layout] = TO_GUEST[name]
  return encode(kind, layout, id, values, tag)
}

function encode(kind: number, layout: Layout, id: number, values: Readonly<Record<string, unknown>>, tag: number):
Buffer {
  const parts = Object.entries(layout).map(([field, type]) => WRITE[type](values[field] as never))
  const size = parts.reduce((total, part) => total + part.length, 0)
  if (size > BODY_BYTES_MAX) throw new RangeError(`a frame of ${size} bytes`)
  const frame = Buffer.allocUnsafe(HEADER_BYTES + size + TAG_BYTES)
  frame[0] = FRAME_MARK
  frame[1] = kind
  frame.writeUInt16LE(0, 2)
  frame.writeUInt32LE(id, 4)
  frame.writeUInt32LE(size, 8)
  let at = HEADER_BYTES
  for (const part of parts) {
    frame.set(part, at)
    at += part.length
  }
  frame.writeUInt32LE(tag, at)
  return frame
}

/** What goes before a hello. */
export function paddingBytes(): Buffer {
  return Buffer.alloc(FRAME_BYTES_MAX)
}

/** Makes frames of what an agent sends, however it is cut. Nothing before the answer to our hello is looked at. */
export class AgentDecoder {
  readonly #nonce: Buffer
  readonly #tag: number
  #isInStep = false
  #scanned = 0
  /** Bytes that may be the beginning of our answer; then the frame that isn't complete yet. */
  #partial: Buffer = Buffer.alloc(0)
  #have = 0

  /** `nonce`: of our hello, as hex. */
  constructor(nonce: string, tag: number) {
    this.#nonce = Buffer.from(nonce, 'hex')
    this.#tag = tag
  }

  /** The frames that are complete with this chunk, the answer to the hello first. Throws BadAgentFrame. */
  *push(chunk: Buffer): Generator<GuestFrame> {
    let rest = chunk
    if (!this.#isInStep) {
      const found = this.#scan(chunk)
      if (found === undefined) return
      rest = found
    }
    for (let at = 0; at < rest.length;) {
      if (this.#have === 0 && rest.length - at >= HEADER_BYTES) {
        const end = at + sizeOf(rest, at)
        if (end <= rest.length) {
          yield this.#parse(rest.subarray(at, end))
          at = end
          continue
        }
      }
      at += this.#keep(rest, at)
      if (this.#have < HEADER_BYTES) continue
      const size = sizeOf(this.#partial, 0)
      if (this.#have < size) continue
      this.#have = 0
      // A copy: the room is the next one's.
      yield this.#parse(Buffer.from(this.#partial.subarray(0, size)))
    }
  }

  // The chunk from the hello's answer on, as soon as its beginning is there.
  #scan(chunk: Buffer): Buffer | undefined {
    this.#scanned += chunk.length
    const all = Buffer.concat([this.#partial, chunk])
    for (let at = all.indexOf(this.#nonce); at >= 0; at = all.indexOf(this.#nonce, at + 1)) {
      const from = at - NONCE_AT
      if (from < 0 || all[from] !== FRAME_MARK || all[from + 1] !== FROM_GUEST.hello[0]) continue
      this.#isInStep = true
      this.#partial = Buffer.allocUnsafe(FRAME_BYTES_MAX)
      return all.subarray(from)
    }
    if (this.#scanned > SCAN_BYTES_MAX) throw new BadAgentFrame('no answer to the hello')
    this.#partial = Buffer.from(all.subarray(Math.max(0, all.length - NONCE_AT - 15)))
    return undefined
  }

  // Takes what belongs to the frame in progress, up to its end or that of its header: how many bytes.
  #keep(chunk: Buffer, at: number): number {
    const wanted = this.#have < HEADER_BYTES ? HEADER_BYTES : sizeOf(this.#partial, 0)
    const count = Math.min(wanted - this.#have, chunk.length - at)
    chunk.copy(this.#partial, this.#have, at, at + count)
    this.#have += count
    return count
  }

  #parse(frame: Buffer): GuestFrame {
    if (frame.readUInt32LE(frame.length - TAG_BYTES) !== this.#tag) throw new BadAgentFrame('a frame with a wrong tag')
    const name = NAMES.get(frame[1]!)
    if (name === undefined) throw new BadAgentFrame(`a frame of kind ${frame[1]}`)
    const body = new Body(frame.subarray(HEADER_BYTES, frame.length - TAG_BYTES))
    const values: Record<string, unknown> = { name, id: frame.readUInt32LE(4) }
    for (const [field, type] of Object.entries(FROM_GUEST[name][1])) values[field] = READ[type](body)
    if (body.at !== body.bytes.length) throw new BadAgentFrame(`a ${name} of ${body.bytes.length} bytes`)
    return values as GuestFrame
  }
}

/** The nonce in the answer to a hello: after the header and the version. */
const NONCE_AT = HEADER_BYTES + 4
const NAMES = new Map(Object.entries(FROM_GUEST)
  .map(([name, [kind]]) => [kind as number, name as keyof typeof FROM_GUEST]))

// Of a whole frame, of which the header is there.
function sizeOf(bytes: Buffer, at: number): number {
  const length = bytes.readUInt32LE(at + 8)
  if (bytes[at] !== FRAME_MARK || length > BODY_BYTES_MAX) throw new BadAgentFrame(`a frame of ${length} bytes`)
  return HEADER_BYTES + length + TAG_BYTES
}

class Body {
  readonly bytes: Buffer
  at = 0

  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  take(size: number): Buffer {
    const { at } = this
    if (this.bytes.length - at < size) throw new BadAgentFrame('a frame that is too short')
    this.at += size
    return this.bytes.subarray(at, this.at)
  }
}

const READ: { readonly [Type in keyof Fields]: (body: Body) => Fields[Type] } = {
  u8: (body) => body.take(1).readUInt8(),
  u16: (body) => body.take(2).readUInt16LE(),
  u32: (body) => body.take(4).readUInt32LE(),
  u64: (body) => Number(body.take(8).readBigUInt64LE()),
  hex16: (body) => body.take(16).toString('hex'),
  text: (body) => body.take(READ.u16(body)).toString('utf8'),
  texts: (body) => Array.from({ length: READ.u16(body) }, () => READ.text(body)),
  bytes: (body) => body.take(body.bytes.length - body.at),
}

const WRITE: { readonly [Type in keyof Fields]: (value: Fields[Type]) => Uint8Array } = {
  u8: (value) => Buffer.from([value]),
  u16: (value) => number(2, Math.min(Math.max(Math.trunc(value) || 0, 0), 0xffff)),
  u32: (value) => number(4, value),
  u64: (value) => number(8, value),
  hex16: (value) => {
    const bytes = Buffer.from(value, 'hex')
    if (bytes.length !== 16) throw new RangeError(`"${value}" isn't 16 bytes as hex`)
    return bytes
  },
  text: (value) => {
    const bytes = Buffer.from(value)
    if (bytes.includes(0)) throw new RangeError('a text with a NUL in it')
    return Buffer.concat([lengthOf(bytes.length), bytes])
  },
  texts: (values) => Buffer.concat([lengthOf(values.length), ...values.map((value) => WRITE.text(value))]),
  bytes: (value) => value,
}

function lengthOf(length: number): Buffer {
  if (length > 0xffff) throw new RangeError(`a field of ${length}`)
  return number(2, length)
}

function number(size: 2 | 4 | 8, value: number): Buffer {
  const bytes = Buffer.alloc(size)
  if (size === 8) bytes.writeBigUInt64LE(BigInt(value))
  else bytes.writeUIntLE(value, 0, size)
  return bytes
}
