package blobtest

import (
	"os"

	"github.com/minio/crc64nvme"

	"blobmount/blobcache/blob"
)

// fileBodyCheck is the contract for a body in a file: it is the part of it that it names, with zeros beyond its end, and
// what does not match its checksum is refused.
func fileBodyCheck() Check {
	return check("StageBlock/FileBody", func(p *probe) {
		file, err := os.CreateTemp("", "body")
		p.ok(err, "CreateTemp")
		defer file.Close()
		p.ok(os.Remove(file.Name()), "remove") // a descriptor is enough
		content := pattern(300<<10 + 7)
		_, err = file.WriteString("before" + content + "after")
		p.ok(err, "write")
		n, sum := int64(len(content)), crc64nvme.Checksum([]byte(content))
		body := blob.NewFileBody(file, 6, n)
		p.ok(p.c.StageBlock(p.ctx, "x", "1", body, n), "StageBlock without a checksum")
		body.SetCRC64(sum)
		p.ok(p.c.StageBlock(p.ctx, "x", "2", body, n), "StageBlock with a checksum")
		p.ok(p.c.StageBlock(p.ctx, "x", "3", blob.NewFileBody(file, 6+n, 8), 8), "StageBlock beyond the end")
		p.commit("x", blob.WriteOptions{}, "1", "2", "3")
		p.holds("x", content+content+"after\x00\x00\x00")

		body.SetCRC64(sum + 1)
		p.fails(p.c.StageBlock(p.ctx, "x", "4", body, n), "StageBlock with another checksum").with(blob.Damaged)
		p.equal(len(p.blocks("x").Uncommitted), 0, "uncommitted blocks after a refusal")
		_, err = p.c.Upload(p.ctx, "x", body, n, blob.WriteOptions{})
		p.fails(err, "Upload with another checksum").with(blob.Damaged)
		p.holds("x", content+content+"after\x00\x00\x00")
	})
}
