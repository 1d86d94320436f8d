// services/gateway/gateway.ts: the other end of a machine's network card: an Ethernet and IPv4 gateway in user space.
//
// The guest sees a network with a gateway and its peers in it, and the outside behind the gateway. Nothing of what it
// sends leaves as a packet: TCP ends here (tcp.ts), and each connection becomes a `dial` of the owner, which asks the
// host as a cell's process does: the same names, rules, counters and events. Addresses outside are dialled by the name
// that the guest asked for (name_server.ts); one that it never asked for is dialled as an address, which only rules of
// ranges allow. What comes from outside for the guest's ports is opened towards it (`open`).
//
//   guest ⇄ FrameStream ⇄ Gateway ┬ ARP, DHCP, echo, names      answered here
//                                 ├ TCP to peers, outside       connections.ts → dial
//                                 ├ UDP, ICMP to machines       peer_links.ts  → link
//                                 └ UDP outside                 udp_flows.ts   → udp, where the owner has it
//
// Not offered: IPv6 (its frames are dropped), IPv4 fragments (dropped: ipv4.ts), multicast. The guest is hostile: its
// frames count as what they are only after checks of MAC, address, length and sum, and each table has a limit.

import { duplexPair, type Duplex } from 'node:stream'
import { assert } from '../../base/assert.ts'
import { ECONNREFUSED, EHOSTUNREACH, EIO, EMFILE } from '../../base/errno.ts'
import { GATEWAY_NAME_CLIENTS_MAX, HOST_NAME_BYTES_MAX } from '../../base/limits.ts'
import {
  BROADCAST_ADDRESS, isIn, isSame, parseAddress, parseMac, parseRange, textOf, type Mac, type Range,
} from './addresses.ts'
import { answerArp } from './arp.ts'
import { processClock, type Clock } from './clock.ts'
import { Connections } from './connections.ts'
import { answerDhcp, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, type Lease } from './dhcp.ts'
import { answerEcho, codeOf, HOST_UNREACHABLE, NET_UNREACHABLE, PORT_UNREACHABLE, Unreachables } from './icmp.ts'
import {
  ETHERNET_BYTES, ETHERTYPE_ARP, ETHERTYPE_IPV4, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, IPV4_BYTES, Packet, readPacket,
  Wire,
} from './ipv4.ts'
import { NameServer } from './name_server.ts'
import { serveNames } from './name_stream.ts'
import { PeerLinks } from './peer_links.ts'
import { NOWHERE, type FramePort, type Slab } from './slab.ts'
import { Datagram, readDatagram, sendDatagram, UDP_BYTES } from './udp.ts'
import { UdpFlows, type UdpFlow } from './udp_flows.ts'

const NAME_PORT = 53
const MTU_MIN = 576
const MTU_MAX = 65_535

/** One network card's place in its network (addresses.ts computes the addresses). */
export type GatewayConfig = {
  /** '10.1.0.0/16' */
  readonly network: string
  readonly gateway: string; readonly gatewayMac: string
  /** The guest's own. */
  readonly address: string; readonly mac: string
  readonly mtu: number
  readonly hostname: string
  /** What may stand behind names of peers, such as 'cellar.internal'; '' for nothing. */
  readonly domain: string
  /** The address of another guest of the network. Names come in lower case, as DNS has no other. */
  readonly peers: (name: string) => string | undefined
  /** The name of the guest that has the address, as `dial` takes it. */
  readonly nameOf: (address: string) => string | undefined
}

/** What a gateway asks of its owner. */
export type GatewayOwner = {
  /** Connects to a peer's name, to a name outside, or to an address: a connected stream, or an errno. */
  dial(host: string, port: number): Promise<Duplex | number>
  /** True if the guest's rules of names allow the name, for any port if none is given. */
  allows(name: string, port?: number): boolean
  /** Addresses of a name outside that the rules allow, by the host's resolver; or an errno, ENOENT if it has none. */
  resolve(name: string): Promise<readonly string[] | number>
  /** A line to another machine's gateway, over which whole packets go; undefined if the peer has none. */
  link?(peer: string): Promise<FramePort | undefined>
  /** A flow of datagrams to a name or address outside. */
  udp?(host: string, port: number, receive: (bytes: Uint8Array) => void): Promise<UdpFlow | number>
  /** The stream that was attached has ended: '' if the other side closed it. */
  ended?(why: string): void
}

/** What a gateway has done since it was made. */
export type GatewayFigures = {
  readonly framesIn: number; readonly bytesIn: number; readonly framesOut: number; readonly bytesOut: number
  /** TCP connections that there are; and those that were made by the guest, to it, refused to it, refused by it. */
  readonly connections: number; readonly accepted: number; readonly opened: number
  readonly refused: number; readonly failed: number
  /** Bytes of memory that connections hold. */
  readonly bufferedBytes: number
  readonly names: Readonly<Record<'answered' | 'refused' | 'unknown' | 'failed', number>>
  /** Frames and packets that were thrown away, by reason. */
  readonly drops: Readonly<Record<string, number>>
}

/**
 * The gateway of one network card. It lives in the main thread of the machine's process, and is made anew after a
 * restore. To wire it:
 *
 *   const gateway = new Gateway({ ...addressesOf(C, n), mtu, hostname, domain, peers, nameOf }, owner)
 *   gateway.attach(new FrameStream(socket))   // the card's stream; again if the engine makes another one
 *   incoming: const stream = await gateway.open(port, { name: peer })   // then join it to the socket that came
 *   link:     gateway.link(peer, new FrameStream(socket))               // the other end of another's `owner.link`
 *   pause → save → resume; in the restored process: restore, attach. close at the end.
 *
 * TCP connections don't survive a restore, as for cells: the guest's segments are answered by resets. What is saved is
 * which names the guest was told for which addresses, as it remembers them too.
 */
export class Gateway {
  readonly #owner: GatewayOwner
  readonly #config: GatewayConfig
  readonly #clock: Clock
  readonly #lease: Lease
  readonly #network: Range
  readonly #mac: Mac
  readonly #wire: Wire
  readonly #names: NameServer
  readonly #connections: Connections
  readonly #unreachables: Unreachables
  readonly #flows: UdpFlows
  readonly #links: PeerLinks
  readonly #packet = new Packet()
  readonly #datagram = new Datagram()
  readonly #arp: Parameters<typeof answerArp>[4]
  readonly #counts = { framesIn: 0, bytesIn: 0 }
  readonly #drops: Record<string, number> = {}
  #port: FramePort | undefined
  #nameClients = 0

  /** The configuration is the host's: what can't be is a bug. Tests pass a `clock` of their own. */
  constructor(config: GatewayConfig, owner: GatewayOwner, clock: Clock = processClock) {
    const { mtu, hostname, domain } = config
    const network = parseRange(config.network)
    const [gateway, address] = [parseAddress(config.gateway), parseAddress(config.address)]
    const [mac, gatewayMac] = [parseMac(config.mac), parseMac(config.gatewayMac)]
    assert(network !== undefined && gateway !== undefined && address !== undefined, 'addresses', config.network)
    assert(mac !== undefined && gatewayMac !== undefined, 'MACs', config.mac)
    assert(mtu >= MTU_MIN && mtu <= MTU_MAX, 'mtu', mtu)
    this.#owner = owner
    this.#config = config
    this.#clock = clock
    this.#network = network
    this.#mac = gatewayMac
    this.#lease = { mac, address, gateway, netmask: network.mask, mtu, hostname, domain }
    this.#wire = new Wire(NOWHERE, gatewayMac, mac)
    const now = (): number => clock.now()
    this.#unreachables = new Unreachables(this.#wire, gateway, now)
    this.#arp = { guest: { mac, address }, mac: gatewayMac, has: (wanted) => this.#isHere(wanted) }
    this.#names = new NameServer({
      domain, network, peer: (name) => this.#addressOf(name),
      nameOfPeer: (wanted) => wanted === gateway ? 'gateway' : wanted === address ? hostname : this.#peerAt(wanted),
      allows: (name, port) => owner.allows(name, port), resolve: (name) => owner.resolve(name),
    }, now)
    this.#connections = new Connections({
      wire: this.#wire, clock, mtu, accept: (to, port) => this.#dial(to, port).catch(() => EIO),
      refuse: (errno, what) => {
        const code = codeOf(errno)
        return code !== undefined && this.#unreachables.send(code, what)
      },
    })
    this.#flows = new UdpFlows(clock)
    this.#links = new PeerLinks({
      link: async (name) => await owner.link?.(name), now, address, addressOf: (name) => this.#peer(name),
      deliver: (slab, packet) => this.#deliver(slab, packet), delivered: () => this.#wire.sink.flush(),
      dropped: (why) => this.#drop(why),
    })
  }

  /** Frames come and go here from now on. */
  attach(port: FramePort): void {
    this.#port?.close()
    this.#port = port
    this.#wire.sink = port
    port.start({
      frame: (slab, from, to) => this.#frame(slab, from, to),
      batch: () => {
        this.#connections.flush()
        this.#links.flush()
      },
      room: () => this.#connections.room(),
      ended: (why) => {
        if (this.#port !== port) return
        this.#port = undefined
        this.#wire.sink = NOWHERE
        this.#connections.flush()
        this.#owner.ended?.(why)
      },
    })
    this.#connections.room()
  }

  /** Connects to a port of the guest, as if from a peer, or from the gateway: the connection, or an errno. */
  async open(port: number, from?: { readonly name: string }): Promise<Duplex | number> {
    const local = from === undefined ? undefined : this.#peer(from.name)
    return await this.#connections.connect(local ?? this.#lease.gateway, this.#lease.address, port)
  }

  /** Another machine's gateway has laid a line to this one. */
  link(peer: string, port: FramePort): void { this.#links.take(peer, port) }

  /** The guest's vCPUs stand still: its connections wait, and don't fail for it. */
  pause(): void { this.#connections.pause() }
  resume(): void { this.#connections.resume() }

  /** What a restored gateway needs to know. */
  save(): Uint8Array { return this.#names.save() }
  /** Throws SNAPSHOT_DAMAGED. */
  restore(saved: Uint8Array): void { this.#names.restore(saved) }

  figures(): GatewayFigures {
    const { frames: framesOut, bytes: bytesOut } = this.#wire.counts
    return {
      ...this.#counts, framesOut, bytesOut, connections: this.#connections.open, ...this.#connections.counts,
      bufferedBytes: this.#connections.memory.used, names: { ...this.#names.counts }, drops: { ...this.#drops },
    }
  }

  /** Resets all connections, and lets go of all streams. */
  close(): void {
    this.#connections.close()
    this.#flows.close()
    this.#links.close()
    this.#port?.close()
    this.#port = undefined
    this.#wire.sink = NOWHERE
  }

  #drop(why: string): void {
    if (why !== '') this.#drops[why] = (this.#drops[why] ?? 0) + 1
  }

  // Hot path, down to Connections.segment: no allocation.
  #frame(slab: Slab, from: number, to: number): void {
    this.#counts.framesIn++
    this.#counts.bytesIn += to - from
    this.#connections.begin()
    if (to - from < ETHERNET_BYTES) return this.#drop('frame short')
    const { view } = slab
    if (!isSame(this.#lease.mac, view, from + 6)) return this.#drop('frame spoofed')
    // The lowest bit of the first byte: to many.
    const isToMany = (view.getUint8(from) & 1) !== 0
    if (!isToMany && !isSame(this.#mac, view, from)) return this.#drop('frame not for us')
    const ethertype = view.getUint16(from + 12)
    const body = from + ETHERNET_BYTES
    // TCP ends here: a card that has not cut up what it sends saves both of us the work (virtio-net, HOST_TSO4).
    const isLong = to - body > this.#lease.mtu
    if (isLong && ethertype !== ETHERTYPE_IPV4) return this.#drop('frame long')
    if (ethertype === ETHERTYPE_ARP) return this.#drop(answerArp(slab, body, to, this.#wire, this.#arp))
    if (ethertype !== ETHERTYPE_IPV4) return this.#drop('frame of another protocol')
    const fault = readPacket(slab, body, to, this.#packet)
    if (fault !== '') return this.#drop(fault)
    if (isLong && this.#packet.protocol !== IPPROTO_TCP) return this.#drop('frame long')
    this.#drop(this.#route(slab, this.#packet))
  }

  #route(slab: Slab, packet: Packet): string {
    const { source, destination, protocol } = packet
    const { address, gateway } = this.#lease
    if (source !== address) {
      // Who has no address yet asks for one.
      return source === 0 && protocol === IPPROTO_UDP ? this.#datagrams(slab, packet) : 'ipv4 spoofed'
    }
    if (destination === gateway || destination === BROADCAST_ADDRESS) return this.#toUs(slab, packet)
    const isHere = isIn(this.#network, destination)
    if (destination === address || isNobodys(destination) || (isHere && this.#isBroadcast(destination))) {
      return 'ipv4 undeliverable'
    }
    if (protocol === IPPROTO_TCP) return this.#connections.segment(slab, packet)
    if (isHere) return this.#toPeer(slab, packet)
    if (protocol === IPPROTO_UDP) return this.#datagrams(slab, packet)
    return this.#tell(NET_UNREACHABLE, slab, packet)
  }

  #toUs(slab: Slab, packet: Packet): string {
    if (packet.protocol === IPPROTO_UDP) return this.#datagrams(slab, packet)
    if (packet.destination !== this.#lease.gateway) return 'ipv4 undeliverable'
    if (packet.protocol === IPPROTO_TCP) return this.#connections.segment(slab, packet)
    return packet.protocol === IPPROTO_ICMP ? answerEcho(slab, packet, this.#wire) : 'ipv4 protocol'
  }

  #toPeer(slab: Slab, packet: Packet): string {
    const name = this.#peerAt(packet.destination)
    const isPassed = packet.protocol === IPPROTO_UDP || packet.protocol === IPPROTO_ICMP
    const mayPass = name !== undefined && isPassed && this.#owner.link !== undefined
    if (mayPass && this.#links.send(name, slab, packet)) return ''
    return this.#tell(HOST_UNREACHABLE, slab, packet)
  }

  // Datagrams to the gateway, to everybody, or outside.
  #datagrams(slab: Slab, packet: Packet): string {
    const datagram = this.#datagram
    const fault = readDatagram(slab, packet, datagram)
    if (fault !== '') return fault
    const { destination } = packet
    const { gateway } = this.#lease
    const isToUs = destination === gateway
    const isToAll = destination === BROADCAST_ADDRESS
    if (datagram.destination === DHCP_SERVER_PORT && (isToUs || isToAll)) return this.#dhcp(slab)
    if (packet.source === 0 || isToAll) return 'ipv4 undeliverable'
    if (isToUs && datagram.destination === NAME_PORT) return this.#question(slab)
    if (isToUs || this.#owner.udp === undefined) return this.#tell(PORT_UNREACHABLE, slab, packet)
    return this.#flow(slab, packet)
  }

  #dhcp(slab: Slab): string {
    const reply = answerDhcp(slab, this.#datagram.from, this.#datagram.to, this.#lease)
    if (reply === undefined) return 'dhcp unanswered'
    return this.#send({
      source: this.#lease.gateway, sourcePort: DHCP_SERVER_PORT, destination: reply.to,
      destinationPort: DHCP_CLIENT_PORT, isBroadcast: reply.isBroadcast,
    }, reply.bytes)
  }

  #question(slab: Slab): string {
    const { gateway: source, address: destination } = this.#lease
    const { source: destinationPort, from, to } = this.#datagram
    void this.#names.answer(slab.bytes.subarray(from, to), false).then((answer) => {
      if (answer === undefined) return this.#drop('dns unanswered')
      this.#drop(this.#send({ source, sourcePort: NAME_PORT, destination, destinationPort }, answer))
      this.#wire.sink.flush()
    })
    return ''
  }

  #flow(slab: Slab, { source, destination }: Packet): string {
    const { source: port, destination: outsidePort, from, to } = this.#datagram
    const key = `${port} ${destination} ${outsidePort}`
    const what = {
      protocol: IPPROTO_UDP, source, destination, first: (port << 16 | outsidePort) >>> 0,
      second: UDP_BYTES + to - from << 16 >>> 0,
    }
    const receive = (bytes: Uint8Array): void => {
      this.#flows.used(key)
      const ends = { source: destination, sourcePort: outsidePort, destination: source, destinationPort: port }
      this.#drop(this.#send(ends, bytes))
      this.#wire.sink.flush()
    }
    const host = this.#names.nameOf(destination, outsidePort) ?? textOf(destination)
    const isSent = this.#flows.send(key, slab.bytes.subarray(from, to),
      () => this.#owner.udp!(host, outsidePort, receive).catch(() => EIO), (errno) => {
        this.#unreachables.send(codeOf(errno) ?? PORT_UNREACHABLE, what)
        this.#wire.sink.flush()
      })
    return isSent ? '' : 'udp full'
  }

  #send(ends: Parameters<typeof sendDatagram>[1], bytes: Uint8Array): string {
    if (bytes.length > this.#lease.mtu - IPV4_BYTES - UDP_BYTES) return 'udp too long'
    return sendDatagram(this.#wire, ends, bytes) ? '' : 'output full'
  }

  // Another machine's packet, checked, to the guest.
  #deliver({ bytes }: Slab, { head, end }: Packet): void {
    const size = end - head
    if (size > this.#lease.mtu) return this.#drop('link too long')
    const at = this.#wire.beginFrame(ETHERTYPE_IPV4, size)
    if (at < 0) return this.#drop('output full')
    bytes.copy(this.#wire.sink.slab.bytes, at, head, end)
    this.#wire.end()
  }

  #tell(code: number, { view }: Slab, { source, destination, protocol, body, end }: Packet): string {
    const isWhole = end - body >= 8
    this.#unreachables.send(code, {
      protocol, source, destination, first: isWhole ? view.getUint32(body) : 0,
      second: isWhole ? view.getUint32(body + 4) : 0,
    })
    return 'ipv4 unreachable'
  }

  async #dial(address: number, port: number): Promise<Duplex | number> {
    if (address === this.#lease.gateway) return port === NAME_PORT ? this.#nameClient() : ECONNREFUSED
    if (!isIn(this.#network, address)) {
      return await this.#owner.dial(this.#names.nameOf(address, port) ?? textOf(address), port)
    }
    const name = this.#peerAt(address)
    return name === undefined ? EHOSTUNREACH : await this.#owner.dial(name, port)
  }

  #nameClient(): Duplex | number {
    if (this.#nameClients >= GATEWAY_NAME_CLIENTS_MAX) return EMFILE
    this.#nameClients++
    const [theirs, ours] = duplexPair()
    void serveNames(ours, this.#names, this.#clock).finally(() => { this.#nameClients-- })
    return theirs
  }

  #isHere(address: number): boolean {
    return address === this.#lease.gateway || (isIn(this.#network, address) && this.#peerAt(address) !== undefined)
  }

  #isBroadcast(address: number): boolean { return (address | this.#network.mask) >>> 0 === BROADCAST_ADDRESS }

  #peerAt(address: number): string | undefined { return this.#config.nameOf(textOf(address)) }

  #peer(name: string): number | undefined { return parseAddress(this.#config.peers(name) ?? '') }

  #addressOf(name: string): number | undefined {
    if (name.length > HOST_NAME_BYTES_MAX) return undefined
    if (name === this.#lease.hostname.toLowerCase()) return this.#lease.address
    return this.#peer(name) ?? (name === 'gateway' ? this.#lease.gateway : undefined)
  }
}

// This network, the sender itself, groups, and what is reserved: nothing there can be dialled.
function isNobodys(address: number): boolean {
  const first = address >>> 24
  return first === 0 || first === 127 || first >= 224
}
