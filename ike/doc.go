// Package ike is IKEv2 (RFC 7296) with multiple authentication rounds (RFC 4739) and multiple key
// exchanges (RFC 9370): the state machine of one IKE SA, and the Endpoint that drives thousands of
// them. docs/rfc.md has the other RFCs, requirement by requirement.
//
// # The two halves
//
// An SA does no I/O. It is given events (a datagram, the time, a finished signature, the verdict
// about a certificate, a command of the owner) and returns actions (send this, sign that, check
// this chain, tell the owner). The Endpoint owns the table of SPIs, the bounds for strangers, one
// mailbox for each SA, so that one goroutine at a time owns it, and the workers that sign and
// verify, so that a slow token blocks nobody.
//
// # What an application does
//
// It makes an Endpoint with a Config, hands it the connections with SetPeers and every datagram
// of UDP ports 500 and 4500 (without the non-ESP marker) with HandleDatagram, and carries out
// what the Endpoint says through Config.Send and the Owner.
//
// # The rule that holds everywhere
//
// No CHILD SA exists, and no exchange but IKE_AUTH is carried out, before both ends have proved
// every authentication round that the connection names. The type that can make CHILD SAs
// (established) is only made by the function that counts the rounds.
package ike
