// protocol.h: the frames between the host and its agent in a machine, as src/machine/agent_protocol.ts has them: a test
// compares the numbers. What each carries is said there.
//
//   0  FRAME_MARK, u8      1  kind, u8      2  0, u16      4  id, u32      8  length of the body, u32
//  12  the body            then the session's tag, u32     all little-endian
//
// Between frames there may be zeros. A host that opens a session sends as many as the longest frame has, so that an
// agent that was in the middle of a frame of another session has all of that one; its tag is wrong then.

#ifndef PROTOCOL_H
#define PROTOCOL_H

#define FRAME_MARK 0xC5
#define HEADER_BYTES 12
#define TAG_BYTES 4
#define BODY_BYTES_MAX 65536
#define FRAME_BYTES_MAX (HEADER_BYTES + BODY_BYTES_MAX + TAG_BYTES)

#define AGENT_PROTOCOL_VERSION 1
#define AGENT_PORT 1024

// Bytes that a session's writer may send before its reader has granted more: to the guest, and from it.
#define INPUT_WINDOW_BYTES 65536
#define OUTPUT_WINDOW_BYTES 262144

// Ids of sessions and requests that the guest begins have this bit.
#define GUEST_ID 0x80000000u

// Host to guest.
enum {
  TO_HELLO = 1,
  TO_EXEC = 2,
  TO_GET = 3,
  TO_PUT = 4,
  TO_INPUT = 5,
  TO_EOF = 6,
  TO_CREDIT = 7,
  TO_SIGNAL = 8,
  TO_RESIZE = 9,
  TO_CLOSE = 10,
  TO_STOP = 11,
  TO_EVENT = 12,
  TO_PING = 13,
  TO_ANSWER = 14,
};

// Guest to host.
enum {
  FROM_HELLO = 65,
  FROM_OUTPUT = 66,
  FROM_EOF = 67,
  FROM_EXIT = 68,
  FROM_CREDIT = 69,
  FROM_PONG = 70,
  FROM_DONE = 71,
  FROM_REQUEST = 72,
};

enum { EXEC_TTY = 1, EXEC_NO_INPUT = 2 };
enum { EXITED = 0, SIGNALLED = 1, NOT_STARTED = 2 };
enum { STOP_POWEROFF = 0, STOP_REBOOT = 1 };
enum { EVENT_FORK = 1, EVENT_RESTORE = 2, EVENT_WAKE = 3, EVENT_MIGRATE = 4 };
enum { DID_ENTROPY = 1, DID_CLOCK = 2, DID_HOSTNAME = 4, DID_RENEW = 8 };
enum { ASK_METADATA = 0, ASK_SNAPSHOT = 1, ASK_FORK = 2, ASK_HIBERNATE = 3, ASK_CONNECT = 4 };

#endif
