// Package e2e tests the product as it is shipped: real wardgated, wardgate-chip and wardgate,
// SoftHSM tokens and signed policies, in network namespaces; against itself, against attackers,
// and against strongSwan. It has no code of its own outside its tests.
package e2e
