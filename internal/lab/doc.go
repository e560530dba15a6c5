// Package lab builds small internets on one machine: facilities with hosts, zones and a real
// wardgated each, in network namespaces, with SoftHSM tokens, certificates and signed policies.
// The demo and the end-to-end tests stand on it. It drives the product from outside, through its
// binaries, files and control API, needs root, and touches nothing of the machine's own network.
//
// Addresses: the internet between the facilities is 198.18.0.0/15 (RFC 2544), what lies behind
// them is in 10.0.0.0/8.
//
// Whatever a Lab makes is written down before it is made (processes with their start time,
// namespaces), and undone by [Lab.Close], also when the caller was interrupted; what a killed run
// left behind is undone by the next [New] with the same name.
package lab
