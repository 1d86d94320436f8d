// host/egress.ts: what a guest may reach outside: rules, names, addresses, and the connection itself.
//
// Nothing by default. A rule is a name (or *.NAME), or an address range, each with a port if only that one. A name is
// resolved only if a rule of names allows it: who may not reach a host may not ask for it either, or names would carry
// data out. What a name leads to must be a public address, unless a range allows it: a guest's operator who allows
// "example.com" doesn't mean the addresses of this host, its neighbours or a cloud's metadata service, wherever the
// owner of example.com lets it point. The host makes the connection and hands it over; the guest's process has no
// network. Elsewhere: the descriptor's way to the guest (host/dial.ts).

import { lookup } from 'node:dns/promises'
import { BlockList, connect, isIP, isIPv6, type Socket } from 'node:net'
import { EACCES, ECONNREFUSED, EHOSTUNREACH, errnoOf } from '../base/errno.ts'

/** How long a connection may take to be made. */
const CONNECT_MS_MAX = 10_000

/** Addresses that no name may lead to (RFC 6890 and its kin): this host, its networks, metadata, multicast. */
const NOT_PUBLIC = [
  '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.0.0.0/24',
  '192.0.2.0/24', '192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/4', '240.0.0.0/4',
  '::/128', '::1/128', '64:ff9b::/96', '64:ff9b:1::/48', '100::/64', '2001::/32', '2001:db8::/32', '2002::/16',
  'fc00::/7', 'fe80::/10', 'ff00::/8',
]
const notPublic = listOf(NOT_PUBLIC)

/** One rule, read. */
export type Rule = { readonly port: number | undefined } & (
  | { readonly name: string; readonly below: boolean }
  | { readonly range: BlockList })

/** Reads rules such as 'example.com:443', '*.example.com', '10.0.0.0/8:5432' (spec.ts checks their form). */
export function parseRules(texts: readonly string[]): Rule[] {
  return texts.map((text) => {
    const match = /^(\[[^\]]+\]|[^:]+?)(\/\d{1,3})?(?::(\d{1,5}))?$/.exec(text)
    const host = (match?.[1] ?? text).replace(/^\[|\]$/g, '')
    const port = match?.[3] === undefined ? undefined : Number(match[3])
    if (isIP(host) !== 0) return { range: listOf([host + (match?.[2] ?? (isIPv6(host) ? '/128' : '/32'))]), port }
    const below = host.startsWith('*.')
    return { name: canonical(below ? host.slice(2) : host), below, port }
  })
}

/**
 * The first rule that is a range with an address in it that isn't public: undefined if there is none. Such a rule opens
 * what the host's own network has, its loopback and with it ports that other projects publish there.
 */
export function inwardRule(texts: readonly string[]): string | undefined {
  let rules: readonly Rule[]
  try {
    rules = parseRules(texts)
  } catch {
    return undefined // It is refused as what it is.
  }
  return texts.find((text, i) => {
    const rule = rules[i]!
    if (!('range' in rule)) return false
    const first = text.replace(/^\[([^\]]+)\]/, '$1').split('/')[0]!
    // Of two ranges that overlap, one has the first address of the other.
    const address = isIPv6(first) || !first.includes(':') ? first : first.slice(0, first.indexOf(':'))
    return isInward(address) || NOT_PUBLIC.some((range) => contains(rule.range, range.split('/')[0]!))
  })
}

/** A name is allowed by rules of names alone, an address by rules of ranges alone. No port: a name, for any port. */
export function allows(rules: readonly Rule[], host: string, port: number | undefined): boolean {
  if (isIP(host) !== 0) return port !== undefined && inRanges(rules, host, port)
  const name = canonical(host)
  return rules.some((rule) => 'name' in rule && (port === undefined || (rule.port ?? port) === port) &&
    (rule.below ? name.endsWith(`.${rule.name}`) : name === rule.name))
}

function inRanges(rules: readonly Rule[], address: string, port: number): boolean {
  return rules.some((rule) => 'range' in rule && (rule.port ?? port) === port && contains(rule.range, address))
}

/** What became of an attempt: a connected socket, paused and unread; or an errno, with why it was. */
export type Attempt = { readonly socket: Socket; readonly address: string } |
  { readonly errno: number; readonly why: 'denied' | 'not public' | 'unresolved' | 'failed' }

/** Finds the addresses of a name. */
export type Resolve = (name: string) => Promise<readonly string[]>

const resolveByHost: Resolve = async (name) => (await lookup(name, { all: true })).map(({ address }) => address)

/** Connects to HOST:PORT if the rules allow it. Never throws. */
export async function reach(rules: readonly Rule[], host: string, port: number, resolve = resolveByHost):
Promise<Attempt> {
  if (!allows(rules, host, port)) return { errno: EACCES, why: 'denied' }
  let addresses: readonly string[] = [host]
  if (isIP(host) === 0) {
    try {
      addresses = await resolve(canonical(host))
    } catch {
      return { errno: EHOSTUNREACH, why: 'unresolved' }
    }
    const allowed = addresses.filter((address) => !isInward(address) || inRanges(rules, address, port))
    if (allowed.length === 0) return addresses.length === 0 ? { errno: EHOSTUNREACH, why: 'unresolved' }
      : { errno: EACCES, why: 'not public' }
    addresses = allowed
  }
  let errno = ECONNREFUSED
  for (const address of addresses) {
    const found = await dial(address, port)
    if (typeof found !== 'number') return { socket: found, address }
    errno = found
  }
  return { errno, why: 'failed' }
}

/** The addresses that a name leads to and that may be reached by some rule; none if no rule has the name. */
export async function addressesOf(rules: readonly Rule[], host: string, resolve = resolveByHost): Promise<string[]> {
  const name = canonical(host)
  const ports = rules.filter((rule) => 'name' in rule).map(({ port }) => port ?? ANY_PORT)
  if (isIP(host) !== 0 || !allows(rules, name, undefined)) return []
  const found = await resolve(name).catch(() => [])
  return found.filter((address) => !isInward(address) || ports.some((port) => inRanges(rules, address, port)))
}

/** Stands for each port where a rule has none of its own. */
const ANY_PORT = 0

/** True for an address that isn't of the public network. An IPv4 address in IPv6's clothes is what it is. */
function isInward(address: string): boolean {
  return contains(notPublic, address)
}

function contains(list: BlockList, address: string): boolean {
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)?.[1]
  if (mapped !== undefined && list.check(mapped, 'ipv4')) return true
  return list.check(address, isIPv6(address) ? 'ipv6' : 'ipv4')
}

function dial(host: string, port: number): Promise<Socket | number> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
    // Paused before it is connected: not a byte of it is read here.
    socket.pause()
    const done = (result: Socket | number): void => {
      clearTimeout(timer)
      socket.removeAllListeners().on('error', () => {})
      if (typeof result === 'number') socket.destroy()
      resolve(result)
    }
    const timer = setTimeout(() => done(EHOSTUNREACH), CONNECT_MS_MAX)
    socket.once('connect', () => done(socket)).once('error', (error) => done(errnoOf(error) || ECONNREFUSED))
  })
}

function listOf(ranges: readonly string[]): BlockList {
  const list = new BlockList()
  for (const range of ranges) {
    const [address = '', bits] = range.split('/')
    list.addSubnet(address, Number(bits), isIPv6(address) ? 'ipv6' : 'ipv4')
  }
  return list
}

function canonical(name: string): string {
  return name.toLowerCase().replace(/\.$/, '')
}
