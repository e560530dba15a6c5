// Package addresswatch finds the addresses at which routers of other facilities can reach this machine,
// and tells when they may have changed: another lease, another line, a link that is gone. What follows
// from it is package router's to decide.
package addresswatch
