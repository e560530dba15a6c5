// Package compile makes each device's policy document out of the registry: who its peers are, what
// services it has, what may be opened to whom.
//
// It is pure: the registry, the trust in certificates and the time go in, documents come out.
// Whoever calls it gives serial numbers and validity, and signs. Equal input gives equal octets, and
// Policy.Hash covers everything but serial and validity, so that a device gets a new policy only
// when something in it is new.
//
// A contract that is in force gives both parties a connection of the contract's name with the same
// flows, each from its own side; whatever a party's own rules take away is away on both sides. A
// device gets no connection that no contract names. Every document is compiled by package policy,
// and its tests are run, before it is handed out; what is wrong then is told as a fault of the
// registry's object that it comes from, with its file and line.
package compile
