package wire

import "sync/atomic"

// Counters are what a socket did since it was opened. All count up.
type Counters struct {
	InDatagrams uint64 // received, each one of a run
	InBytes     uint64 // their payload
	InMessages  uint64 // single datagrams and runs, as the kernel handed them over
	InRuns      uint64 // of these, the runs (UDP_GRO)
	InCalls     uint64 // system calls that received something
	InWaits     uint64 // times that there was nothing to receive
	InTruncated uint64 // longer than any IP packet: not handed on
	InMalformed uint64 // native ESP without a whole IPv4 header: not handed on
	InDropped   uint64 // by the kernel, the receive buffer being full (wraps at 2^32)
	InErrors    uint64 // errors of the socket that were pending; receiving went on
	PathErrors  uint64 // reported to OnError, or read when there was none

	OutDatagrams uint64 // handed to the kernel, each one of a run
	OutBytes     uint64 // their payload
	OutMessages  uint64 // single datagrams and runs
	OutRuns      uint64 // of these, the runs (UDP_SEGMENT)
	OutCalls     uint64 // system calls that sent something
	OutWaits     uint64 // times that the send buffer was full
	OutRetries   uint64 // calls made again because an error about an earlier datagram was pending
	Fallbacks    uint64 // runs that the kernel or the device refused and that went singly

	// Messages that failed, whole or in part, by reason.
	OutTooBig      uint64 // EMSGSIZE: longer than the link's MTU
	OutUnreachable uint64 // no route, no neighbour, network down
	OutNoBuffer    uint64 // dropped by the queue of the device
	OutRefused     uint64 // by a rule of the firewall or the far host
	OutOther       uint64 // everything else, and what was not sent because of Close
}

// Add adds o to c.
func (c *Counters) Add(o *Counters) {
	c.InDatagrams += o.InDatagrams
	c.InBytes += o.InBytes
	c.InMessages += o.InMessages
	c.InRuns += o.InRuns
	c.InCalls += o.InCalls
	c.InWaits += o.InWaits
	c.InTruncated += o.InTruncated
	c.InMalformed += o.InMalformed
	c.InDropped += o.InDropped
	c.InErrors += o.InErrors
	c.PathErrors += o.PathErrors
	c.OutDatagrams += o.OutDatagrams
	c.OutBytes += o.OutBytes
	c.OutMessages += o.OutMessages
	c.OutRuns += o.OutRuns
	c.OutCalls += o.OutCalls
	c.OutWaits += o.OutWaits
	c.OutRetries += o.OutRetries
	c.Fallbacks += o.Fallbacks
	c.OutTooBig += o.OutTooBig
	c.OutUnreachable += o.OutUnreachable
	c.OutNoBuffer += o.OutNoBuffer
	c.OutRefused += o.OutRefused
	c.OutOther += o.OutOther
}

// count is a counter with one writer and many readers: no locked read-modify-write is needed.
type count struct{ v atomic.Uint64 }

func (c *count) add(n uint64) {
	if n != 0 {
		c.v.Store(c.v.Load() + n)
	}
}

type recvCounts struct {
	_                                               [64]byte // other cache lines are other cores'
	datagrams, bytes, messages, runs, calls, waits  count
	truncated, malformed, pendingErrors, pathErrors count
	_                                               [64]byte
}

type sendCounts struct {
	_                                                        [64]byte
	datagrams, bytes, messages, runs, calls, waits, retries  count
	fallbacks, tooBig, unreachable, noBuffer, refused, other count
	_                                                        [64]byte
}

func (c *recvCounts) into(o *Counters) {
	o.InDatagrams += c.datagrams.v.Load()
	o.InBytes += c.bytes.v.Load()
	o.InMessages += c.messages.v.Load()
	o.InRuns += c.runs.v.Load()
	o.InCalls += c.calls.v.Load()
	o.InWaits += c.waits.v.Load()
	o.InTruncated += c.truncated.v.Load()
	o.InMalformed += c.malformed.v.Load()
	o.InErrors += c.pendingErrors.v.Load()
	o.PathErrors += c.pathErrors.v.Load()
}

func (c *sendCounts) into(o *Counters) {
	o.OutDatagrams += c.datagrams.v.Load()
	o.OutBytes += c.bytes.v.Load()
	o.OutMessages += c.messages.v.Load()
	o.OutRuns += c.runs.v.Load()
	o.OutCalls += c.calls.v.Load()
	o.OutWaits += c.waits.v.Load()
	o.OutRetries += c.retries.v.Load()
	o.Fallbacks += c.fallbacks.v.Load()
	o.OutTooBig += c.tooBig.v.Load()
	o.OutUnreachable += c.unreachable.v.Load()
	o.OutNoBuffer += c.noBuffer.v.Load()
	o.OutRefused += c.refused.v.Load()
	o.OutOther += c.other.v.Load()
}
