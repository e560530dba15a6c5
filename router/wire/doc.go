// Package wire is the outer network: the sockets by which ESP and IKE leave and enter the machine,
// many datagrams a system call.
//
// A [Group] is one local address and port, or native ESP (IP protocol 50), with one [Socket] a
// queue. Inbound, one goroutine a socket calls [Socket.Receive] into its [Batch]; the kernel gives
// runs of datagrams glued together (UDP_GRO) and several of them a call (recvmmsg). Between the
// sockets of a group the kernel chooses by the SPI: SPI % queues, so that IKE, which has zeros
// there (RFC 3948, section 2.2), is the first socket's. Outbound, each goroutine has a [Sender],
// which hands runs of equal datagrams to the kernel as one (UDP_SEGMENT) and several of them a call
// (sendmmsg).
//
// Whatever the kernel or a device refuses of this is done the slow way, told once to
// [Options].Log, and counted.
//
// Everything but messages with [Message].Fragment leaves with don't-fragment set, and the kernel's
// idea of the path MTU, which an ICMP message that anybody can forge would change, is not asked:
// datagrams longer than the MTU of the link come back with EMSGSIZE, and what routers on the way
// say is reported as it came ([Socket.OnError]).
//
// A goroutine that waits in Receive or Send keeps a thread, blocked in the kernel, and not in the
// runtime's poller: that costs a thread a queue, and saves waking another one for each datagram.
package wire
