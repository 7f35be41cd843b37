package blobtest

import (
	"context"
	"testing"
	"time"

	"blobmount/blobcache/blob"
)

// Subject is what a check tries: one new, empty container of a service.
type Subject struct {
	Container blob.Container
	// Other is the same container as another host has it: with leases of its own.
	Other blob.Container
	// Advance moves the service's clock; nil when that is not possible.
	Advance func(time.Duration)
}

// Check is one rule that every blob.Container keeps.
type Check struct {
	Name string // Method/Rule
	// Clock: the rule is about time, and the subject needs Advance.
	Clock bool
	// Run tries the rule and returns how it was broken. It may be called in parallel with other checks on other
	// subjects.
	Run func(ctx context.Context, s Subject) error
}

// Checks returns all rules of the contract in package blob. The comment above each says where the rule is from:
// "contract" is blobcache/blob/container.go, a quoted title is a page of the Blob service's REST reference.
func Checks() []Check {
	var all []Check
	for _, group := range [][]Check{
		nameChecks(), writeChecks(), readChecks(), conditionChecks(), blockChecks(), sourceChecks(), appendChecks(), copyChecks(),
		propertyChecks(), leaseChecks(), listChecks(), parallelChecks(),
	} {
		all = append(all, group...)
	}
	return all
}

// Deviation is a check that a service is known to fail, and why.
type Deviation struct {
	Check  string
	Reason string
}

// checkTimeout bounds one check: the longest writes 16 MiB and lists a few hundred names, a second against a slow
// emulator, so a minute means that it hangs.
const checkTimeout = time.Minute

// Conformance runs all checks as subtests, each on a new subject. A check named in known must fail, so that a
// deviation that was repaired does not stay in the list.
func Conformance(t *testing.T, newSubject func(t *testing.T) Subject, known ...Deviation) {
	t.Helper()
	deviations := map[string]string{}
	for _, d := range known {
		deviations[d.Check] = d.Reason
	}
	for _, check := range Checks() {
		reason, deviates := deviations[check.Name]
		delete(deviations, check.Name)
		t.Run(check.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), checkTimeout)
			defer cancel()
			subject := newSubject(t)
			if check.Clock && subject.Advance == nil {
				t.Skip("the clock of this service cannot be moved")
			}
			err := check.Run(ctx, subject)
			switch {
			case deviates && err == nil:
				t.Errorf("passes, but is listed as a deviation (%s): remove it from the list", reason)
			case deviates:
				t.Skipf("known deviation: %s (%v)", reason, err)
			case err != nil:
				t.Error(err)
			}
		})
	}
	for name := range deviations {
		t.Errorf("deviation %q names no check", name)
	}
}
