// Package router is the appliance: the one place where the TUN device, ESP, IKE, the token, the
// policy and the audit record meet.
//
// A packet from the LAN comes out of a TUN queue and is taken to completion by the worker that
// owns the queue: parsed (packet.go), decided by the flow table (flows.go) and the policy behind
// it, given to the connection it belongs to (connection.go), sealed with the connection's
// current outbound SA (sad.go) and sent (outbound.go). A packet from the internet comes out of a
// UDP socket (sockets.go), is told apart (IKE, ESP, keepalive), opened, checked against the
// selectors of the SA it came on, then against the policy, and written to the TUN (inbound.go).
//
// No relay (ZONE-1) is held in three places that do not trust each other: the policy's Table has
// no rule by which a packet from one tunnel could be meant for another; inbound.go hands a
// decrypted packet to nobody but the TUN, and only if its destination lies in a local zone; and
// package router/kernel tells the kernel that nothing that came out of the TUN may go back
// into it.
//
// The keeper of connections (connection.go, lifecycle.go) wakes a connection with the first packet that
// needs it, holds that packet and a bounded number of its successors until the CHILD SA stands,
// and lets the connection go when it has been idle.
package router
