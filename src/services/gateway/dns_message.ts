// services/gateway/dns_message.ts: DNS messages (RFC 1035 §4), as far as a guest's resolver has to do with us.
//
// One question is read; what is behind it (EDNS) is ignored, which its sender understands (RFC 6891 §7). A name in a
// question needs no compression, so pointers are refused, and with them all loops. Names have letters, digits, "-" and
// "_": others exist in no network of ours, and nobody outside is asked for them.

import { HOST_NAME_BYTES_MAX } from '../../base/limits.ts'

export const TYPE_A = 1
export const TYPE_PTR = 12
export const TYPE_ANY = 255
const CLASS_IN = 1

export const NO_ERROR = 0
const FORMAT_ERROR = 1
export const SERVER_FAILED = 2
export const NO_NAME = 3
const NOT_IMPLEMENTED = 4
export const REFUSED = 5

const HEAD_BYTES = 12
const LABEL_BYTES_MAX = 63
/** What fits into UDP without EDNS. */
const UDP_BYTES_MAX = 512

/** A question. `name`: in lower case, without a final dot; undefined if it can't be anybody's. */
export type Question = {
  readonly id: number; readonly flags: number; readonly name: string | undefined; readonly type: number
  /** The question as it came, to be repeated. */
  readonly bytes: Buffer
}

/** Reads a query. A number is the error to answer with; undefined if it is to get no answer at all. */
export function readQuestion(message: Buffer): Question | number | undefined {
  // A response must not be answered: two servers would talk forever.
  if (message.length < HEAD_BYTES || (message[2]! & 0x80) !== 0) return undefined
  const flags = message.readUInt16BE(2)
  if ((flags >> 11 & 15) !== 0) return NOT_IMPLEMENTED
  if (message.readUInt16BE(4) !== 1) return FORMAT_ERROR
  const labels: string[] = []
  let at = HEAD_BYTES
  for (;;) {
    const size = message[at++]
    if (size === undefined || size > LABEL_BYTES_MAX || at + size > message.length) return FORMAT_ERROR
    if (size === 0) break
    labels.push(message.toString('latin1', at, at + size))
    at += size
    if (at - HEAD_BYTES > HOST_NAME_BYTES_MAX + 1) return FORMAT_ERROR
  }
  if (at + 4 > message.length) return FORMAT_ERROR
  const type = message.readUInt16BE(at)
  const isKnown = message.readUInt16BE(at + 2) === CLASS_IN && labels.every((label) => /^[\w-]+$/.test(label))
  return {
    id: message.readUInt16BE(0), flags, type, bytes: message.subarray(HEAD_BYTES, at + 4),
    name: isKnown ? labels.join('.').toLowerCase() : undefined,
  }
}

/** An answer: addresses or a name that the question's name has. */
export type Answer = { readonly code: number; readonly addresses?: readonly number[]; readonly pointer?: string }

/** The response to `query` that says `answer`. `isTcp`: it may be long. */
export function response(query: Buffer, question: Question | undefined, answer: Answer, ttlS: number, isTcp: boolean):
Buffer {
  const asked = question?.bytes ?? Buffer.alloc(0)
  const records = [
    ...(answer.addresses ?? []).map((address) => {
      const data = Buffer.alloc(4)
      data.writeUInt32BE(address)
      return record(TYPE_A, ttlS, data)
    }),
    ...answer.pointer === undefined ? [] : [record(TYPE_PTR, ttlS, encodeName(answer.pointer))],
  ]
  const most = isTcp ? Infinity : UDP_BYTES_MAX
  let size = HEAD_BYTES + asked.length
  const fitting = records.filter((one) => (size += one.length) <= most)
  const head = Buffer.alloc(HEAD_BYTES)
  query.copy(head, 0, 0, 2)
  // A response, of the same kind, truncated or not, with recursion as desired, and available.
  const flags = query.readUInt16BE(2)
  const isCut = fitting.length < records.length
  head.writeUInt16BE(0x8000 | flags & 0x7900 | (isCut ? 0x0200 : 0) | 0x0080 | answer.code, 2)
  head.writeUInt16BE(question === undefined ? 0 : 1, 4)
  head.writeUInt16BE(fitting.length, 6)
  return Buffer.concat([head, asked, ...fitting])
}

// The record's name is the question's: a pointer to it.
function record(type: number, ttlS: number, data: Buffer): Buffer {
  const head = Buffer.alloc(HEAD_BYTES)
  head.writeUInt16BE(0xc000 | HEAD_BYTES, 0)
  head.writeUInt16BE(type, 2)
  head.writeUInt16BE(CLASS_IN, 4)
  head.writeUInt32BE(ttlS, 6)
  head.writeUInt16BE(data.length, 10)
  return Buffer.concat([head, data])
}

function encodeName(name: string): Buffer {
  const labels = name.split('.').map((label) => Buffer.from(label).subarray(0, LABEL_BYTES_MAX))
  return Buffer.concat([...labels.flatMap((label) => [Buffer.from([label.length]), label]), Buffer.from([0])])
}
