// virtio/support.ts: what of the Virtio specification (1.3) is there, for the reference page and for whoever asks.
//
// A row for each thing that a driver may look for. `level`: 'full', 'partial' (the note says what is missing) or 'none'
// (the note says why). A test compares the features that devices offer with the rows that name them.

/** One thing of the specification. */
export type Support = {
  readonly section: string; readonly name: string; readonly level: 'full' | 'partial' | 'none'; readonly note: string
}

const full = (section: string, name: string, note = ''): Support => ({ section, name, level: 'full', note })
const partial = (section: string, name: string, note: string): Support => ({ section, name, level: 'partial', note })
const none = (section: string, name: string, note: string): Support => ({ section, name, level: 'none', note })

/** The rows, in the order of the specification. */
export const VIRTIO_SUPPORT: readonly Support[] = [
  full('2.1', 'Device status', 'One bit at a time, in order; a jump, or a bit taken back, is ignored and counted'),
  full('2.1.2', 'DEVICE_NEEDS_RESET', 'After a ring or a request against the rules'),
  full('2.2', 'Feature negotiation', 'VERSION_1 must be accepted: there is no legacy interface'),
  full('2.6.1', 'VIRTIO_F_RING_RESET'),
  full('2.7', 'Split virtqueues', '256 entries at most; a descriptor of no bytes is against the rules'),
  full('2.7.5.3', 'VIRTIO_F_INDIRECT_DESC', 'Tables as long as the queue'),
  full('2.7.7', 'VIRTIO_F_EVENT_IDX'),
  none('2.8', 'VIRTIO_F_RING_PACKED', 'Split virtqueues are as fast where queues are served by a thread'),
  none('2.9', 'VIRTIO_F_IN_ORDER', 'Drivers gain nothing that would be noticed'),
  none('2.12', 'Shared memory regions', 'No device here has one'),
  none('4.1', 'PCI transport', 'Machines have no PCI bus'),
  full('4.2.2', 'MMIO register layout', 'Version 2'),
  none('4.2.4', 'Legacy MMIO interface', 'Drivers of before 2016 only'),
  none('6', 'VIRTIO_F_ACCESS_PLATFORM', 'There is no IOMMU between device and guest'),

  full('5.1', 'VIRTIO_NET_F_CSUM'),
  full('5.1', 'VIRTIO_NET_F_GUEST_CSUM'),
  full('5.1', 'VIRTIO_NET_F_MTU'),
  full('5.1', 'VIRTIO_NET_F_MAC'),
  full('5.1', 'VIRTIO_NET_F_GUEST_TSO4'),
  partial('5.1', 'VIRTIO_NET_F_GUEST_TSO6', 'With a TAP device only'),
  partial('5.1', 'VIRTIO_NET_F_HOST_TSO4', 'Where the other end of the stream takes whole segments; with a TAP device'),
  partial('5.1', 'VIRTIO_NET_F_HOST_TSO6', 'With a TAP device only'),
  full('5.1', 'VIRTIO_NET_F_MRG_RXBUF'),
  full('5.1', 'VIRTIO_NET_F_STATUS', 'Down when the other end of the link has gone'),
  none('5.1', 'VIRTIO_NET_F_CTRL_VQ', 'One address, and frames for it: there is nothing to control'),
  none('5.1', 'VIRTIO_NET_F_MQ', 'One thread has all queues'),
  none('5.1', 'VIRTIO_NET_F_GUEST_ANNOUNCE', 'The gateway knows where each address is'),

  none('5.2', 'VIRTIO_BLK_F_SIZE_MAX', 'A segment may have any size; a request 16 MiB'),
  full('5.2', 'VIRTIO_BLK_F_SEG_MAX'),
  full('5.2', 'VIRTIO_BLK_F_RO'),
  full('5.2', 'VIRTIO_BLK_F_BLK_SIZE', '512 bytes'),
  full('5.2', 'VIRTIO_BLK_F_FLUSH', 'Each write reaches the disk where it is not accepted'),
  full('5.2', 'VIRTIO_BLK_F_TOPOLOGY'),
  none('5.2', 'VIRTIO_BLK_F_CONFIG_WCE', 'The guest decides by flushing'),
  full('5.2', 'VIRTIO_BLK_F_MQ', 'A queue for each vCPU, 8 at most'),
  full('5.2', 'VIRTIO_BLK_F_DISCARD'),
  full('5.2', 'VIRTIO_BLK_F_WRITE_ZEROES'),
  none('5.2', 'VIRTIO_BLK_F_SECURE_ERASE', 'Nobody could promise it for a file'),
  none('5.2', 'VIRTIO_BLK_F_LIFETIME', 'A file has none'),
  none('5.2', 'VIRTIO_BLK_F_ZONED', 'Files have no zones'),
  full('5.2.6', 'VIRTIO_BLK_T_IN'),
  full('5.2.6', 'VIRTIO_BLK_T_OUT'),
  full('5.2.6', 'VIRTIO_BLK_T_FLUSH'),
  full('5.2.6', 'VIRTIO_BLK_T_GET_ID'),
  full('5.2.6', 'VIRTIO_BLK_T_DISCARD'),
  full('5.2.6', 'VIRTIO_BLK_T_WRITE_ZEROES'),
  none('5.2.6', 'VIRTIO_BLK_T_SECURE_ERASE', 'As the feature'),

  full('5.3', 'VIRTIO_CONSOLE_F_SIZE'),
  none('5.3', 'VIRTIO_CONSOLE_F_MULTIPORT', 'The agent has vsock'),
  none('5.3', 'VIRTIO_CONSOLE_F_EMERG_WRITE', 'The serial port works from the first instruction'),

  full('5.4', 'Entropy device', '64 KiB a request'),

  none('5.5', 'VIRTIO_BALLOON_F_MUST_TELL_HOST', 'A page that was given is there again when it is touched'),
  none('5.5', 'VIRTIO_BALLOON_F_STATS_VQ', 'The guest agent tells more'),
  full('5.5', 'VIRTIO_BALLOON_F_DEFLATE_ON_OOM'),
  none('5.5', 'VIRTIO_BALLOON_F_FREE_PAGE_HINT', 'Reporting does the same at all times'),
  none('5.5', 'VIRTIO_BALLOON_F_PAGE_POISON', 'A guest that poisons pages reports none'),
  full('5.5', 'VIRTIO_BALLOON_F_PAGE_REPORTING'),

  full('5.10', 'Socket device, stream sockets', 'Transport reset after a restore'),
  none('5.10', 'VIRTIO_VSOCK_F_SEQPACKET', 'Nobody of ours speaks it'),
]
