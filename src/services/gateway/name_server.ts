// services/gateway/name_server.ts: names for the guest: of its peers, and of what it may reach outside.
//
// A name of a peer is answered from the network's own list, alone or with the network's domain behind it. A name
// outside is looked up only if the guest's rules allow it; else the answer is "refused" and nobody outside hears of the
// question, since names carry data out. IPv4 alone is offered: other types of records get an answer with nothing in it.
//
// Rules are by name, and connections go to addresses: so what was answered is remembered (`nameOf`), also through
// snapshots, as the guest remembers it too. Several names may have one address: the one asked for last comes first.

import { EACCES, EHOSTUNREACH, ENOENT } from '../../base/errno.ts'
import { CellarError } from '../../base/errors.ts'
import {
  GATEWAY_ADDRESSES_MAX, GATEWAY_LOOKUPS_MAX, GATEWAY_NAMES_MAX, HOST_NAME_BYTES_MAX,
} from '../../base/limits.ts'
import { isIn, parseAddress, parseRange, type Range } from './addresses.ts'
import {
  NO_ERROR, NO_NAME, readQuestion, REFUSED, response, SERVER_FAILED, TYPE_A, TYPE_ANY, TYPE_PTR, type Answer,
} from './dns_message.ts'

/** How long the guest may remember an answer; and we. */
const TTL_S = 30
/** Addresses of one name that are told. */
const ANSWERS_MAX = 16
const VERSION = 1

/** Where no name outside may lead: they mean this machine, or nobody. */
const NEVER = ['0.0.0.0/8', '127.0.0.0/8', '224.0.0.0/4', '240.0.0.0/4'].map((text) => parseRange(text)!)

/** What a name server asks. */
export type NameSource = {
  readonly domain: string
  readonly network: Range
  /** The address of a peer, of the guest or of the gateway. */
  readonly peer: (name: string) => number | undefined
  readonly nameOfPeer: (address: number) => string | undefined
  /** True if rules of names allow this one, for any port if none is given. */
  readonly allows: (name: string, port?: number) => boolean
  /** The addresses of a name outside; or an errno: ENOENT or EHOSTUNREACH if it has none. May reject. */
  readonly resolve: (name: string) => Promise<readonly string[] | number>
}

/** See the head of this file. */
export class NameServer {
  readonly counts = { answered: 0, refused: 0, unknown: 0, failed: 0 }
  readonly #source: NameSource
  readonly #now: () => number
  /** By address: names, the last one asked for first. The address answered longest ago is the first of the map. */
  readonly #names = new Map<number, string[]>()
  readonly #known = new Map<string, { readonly addresses: readonly number[]; readonly until: number }>()
  #underWay = 0

  constructor(source: NameSource, now: () => number) {
    this.#source = source
    this.#now = now
  }

  /** The response to a query; undefined if it gets none. `query` may be overwritten as soon as this returns. */
  async answer(query: Buffer, isTcp: boolean): Promise<Buffer | undefined> {
    const kept = Buffer.from(query)
    const question = readQuestion(kept)
    if (question === undefined) return undefined
    if (typeof question === 'number') return response(kept, undefined, { code: question }, 0, isTcp)
    const answer = await this.#answerTo(question.name, question.type)
    const counted = answer.code === NO_ERROR ? 'answered' : answer.code === REFUSED ? 'refused' :
      answer.code === NO_NAME ? 'unknown' : 'failed'
    this.counts[counted]++
    return response(kept, question, answer, TTL_S, isTcp)
  }

  /** The name by which the guest means `address`, as its rules have it for `port`; undefined if it never asked. */
  nameOf(address: number, port: number): string | undefined {
    const names = this.#names.get(address)
    return names?.find((name) => this.#source.allows(name, port)) ?? names?.[0]
  }

  /** What was answered: for a snapshot. u16 version, then for each address u32, u8 names, each after its length, u8. */
  save(): Buffer {
    const parts = [Buffer.from([VERSION >> 8, VERSION & 255])]
    for (const [address, names] of this.#names) {
      const head = Buffer.alloc(5)
      head.writeUInt32BE(address)
      head.writeUInt8(names.length, 4)
      parts.push(head, ...names.flatMap((name) => [Buffer.from([name.length]), Buffer.from(name, 'latin1')]))
    }
    return Buffer.concat(parts)
  }

  /** In place of what is there. Throws SNAPSHOT_DAMAGED. */
  restore(saved: Uint8Array): void {
    const bytes = Buffer.from(saved)
    const damaged = (why: string): CellarError => new CellarError('SNAPSHOT_DAMAGED', ['gateway', why])
    if (bytes.length < 2 || bytes.readUInt16BE(0) !== VERSION) throw damaged('names of an unknown version')
    this.#names.clear()
    for (let at = 2; at < bytes.length;) {
      if (at + 5 > bytes.length || this.#names.size === GATEWAY_ADDRESSES_MAX) throw damaged('its names are cut off')
      const address = bytes.readUInt32BE(at)
      const names: string[] = []
      const count = bytes[at + 4]!
      at += 5
      for (let i = 0; i < count; i++) {
        const size = bytes[at] ?? 0
        const name = bytes.toString('latin1', at + 1, at + 1 + size)
        if (name.length !== size || size > HOST_NAME_BYTES_MAX || !/^[\w.-]+$/.test(name)) throw damaged('a bad name')
        if (i < GATEWAY_NAMES_MAX) names.push(name)
        at += 1 + size
      }
      this.#names.set(address, names)
    }
  }

  async #answerTo(name: string | undefined, type: number): Promise<Answer> {
    if (name === undefined || name === '') return { code: NO_NAME }
    const { domain, peer } = this.#source
    const short = domain !== '' && name.endsWith(`.${domain}`) ? name.slice(0, -domain.length - 1) : name
    const ours = peer(short)
    if (ours !== undefined) return { code: NO_ERROR, addresses: wantsAddress(type) ? [ours] : [] }
    const reverse = /^(\d+\.\d+\.\d+\.\d+)\.in-addr\.arpa$/.exec(name)
    if (reverse !== null) return this.#pointer(reverse[1]!, type)
    // What is below the network's domain, or has no domain, is nobody outside.
    if (short !== name || name === domain || !name.includes('.')) return { code: NO_NAME }
    if (!this.#source.allows(name)) return { code: REFUSED }
    return wantsAddress(type) ? await this.#outside(name) : { code: NO_ERROR }
  }

  #pointer(backwards: string, type: number): Answer {
    const address = parseAddress(backwards.split('.').toReversed().join('.'))
    const pointer = address === undefined ? undefined : this.#source.nameOfPeer(address)
    if (pointer === undefined) return { code: NO_NAME }
    return type === TYPE_PTR || type === TYPE_ANY ? { code: NO_ERROR, pointer } : { code: NO_ERROR }
  }

  async #outside(name: string): Promise<Answer> {
    const known = this.#known.get(name)
    if (known !== undefined && known.until > this.#now()) {
      for (const address of known.addresses) this.#remember(address, name)
      return { code: NO_ERROR, addresses: known.addresses }
    }
    if (this.#underWay >= GATEWAY_LOOKUPS_MAX) return { code: SERVER_FAILED }
    this.#underWay++
    try {
      const found = await this.#source.resolve(name)
      if (typeof found === 'number') {
        const isUnknown = found === ENOENT || found === EHOSTUNREACH
        return { code: found === EACCES ? REFUSED : isUnknown ? NO_NAME : SERVER_FAILED }
      }
      const addresses = found.map(parseAddress).filter((address) => address !== undefined)
        .filter((address) => !isIn(this.#source.network, address) && !NEVER.some((range) => isIn(range, address)))
        .slice(0, ANSWERS_MAX)
      for (const address of addresses) this.#remember(address, name)
      this.#known.delete(name)
      this.#known.set(name, { addresses, until: this.#now() + TTL_S * 1000 })
      if (this.#known.size > GATEWAY_ADDRESSES_MAX) this.#known.delete(this.#known.keys().next().value!)
      return { code: NO_ERROR, addresses }
    } catch {
      return { code: SERVER_FAILED }
    } finally {
      this.#underWay--
    }
  }

  #remember(address: number, name: string): void {
    const names = this.#names.get(address)?.filter((one) => one !== name) ?? []
    names.unshift(name)
    names.length = Math.min(names.length, GATEWAY_NAMES_MAX)
    this.#names.delete(address)
    this.#names.set(address, names)
    if (this.#names.size > GATEWAY_ADDRESSES_MAX) this.#names.delete(this.#names.keys().next().value!)
  }
}

function wantsAddress(type: number): boolean { return type === TYPE_A || type === TYPE_ANY }
