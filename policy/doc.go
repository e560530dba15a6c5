// Package policy is the service provider's signed policy file: its format, its signature, the
// compiler that turns it into a fast read-only Table, and the decisions and explanations that the
// Table gives about flows.
//
// A policy file is a JWS in compact serialization (RFC 7515) whose payload is the JSON document
// described in docs/policy.md. Verify does every check in one call and changes nothing; the caller
// then swaps the running *Table for Document.Table.
//
// The rule that everything else serves is "no relay": a packet that came out of a tunnel may go
// only to an address of a local zone, and a packet may go into a tunnel only when it comes from an
// address of a local zone. An address is never both; Compile refuses a policy that would make it
// so. What no flow of the policy names is denied.
//
// The package does no I/O, reads no clock, and never panics on input.
package policy
