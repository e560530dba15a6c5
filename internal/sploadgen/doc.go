// Package sploadgen is many routers at once, as the service provider's centre sees them: each with a
// device certificate and key of its own, a TLS 1.3 connection on which it reports and waits for its next
// policy, and a memory of all that it was given. It also makes the registry that they are in, changes it,
// and knows which device must be given what by a reckoning of its own, so that a policy that is missed,
// made twice, too old or wrong is noticed.
//
// It drives the centre from outside: over the network, by its command line and its files.
package sploadgen
