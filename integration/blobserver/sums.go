package blobserver

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"net/http"

	"github.com/minio/crc64nvme"

	"blobmount/blobcache/blobtest"
)

// checkSums verifies the checksums that came with a body, if any did, and answers with what it found. The service
// answers with a CRC-64 also when none was sent; here that would cost every upload more than the rest of it.
func checkSums(h, answer http.Header, body []byte) error {
	if text := h.Get("Content-MD5"); text != "" {
		want, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(want) != md5.Size {
			return blobtest.Err("InvalidMd5")
		}
		if got := md5.Sum(body); !bytes.Equal(got[:], want) {
			return blobtest.Err("Md5Mismatch")
		}
		answer.Set("Content-MD5", text)
	}
	if text := h.Get("x-ms-content-crc64"); text != "" {
		want, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(want) != crc64nvme.Size {
			return blobtest.Err("InvalidHeaderValue")
		}
		if !bytes.Equal(le64(crc64nvme.Checksum(body)), want) {
			return blobtest.Err("Crc64Mismatch")
		}
		answer.Set("x-ms-content-crc64", text)
	}
	return nil
}

// maxSummed is the largest range whose checksum can be asked for ("Get Blob", x-ms-range-get-content-md5).
const maxSummed = 4 << 20

// rangeSums sets the checksums of a range that the request asked for.
func rangeSums(asked, answer http.Header, content blobtest.Range) error {
	wantMD5 := asked.Get("x-ms-range-get-content-md5") == "true"
	wantCRC := asked.Get("x-ms-range-get-content-crc64") == "true"
	if !wantMD5 && !wantCRC {
		return nil
	}
	if content.Len() > maxSummed {
		return blobtest.Err("InvalidHeaderValue")
	}
	sum, crc := md5.New(), uint64(0)
	for chunk := range content.Chunks(freeChunk) {
		sum.Write(chunk)
		crc = crc64nvme.Update(crc, chunk)
	}
	if wantMD5 {
		answer.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum.Sum(nil)))
	}
	if wantCRC {
		answer.Set("x-ms-content-crc64", base64.StdEncoding.EncodeToString(le64(crc)))
	}
	return nil
}

// requestID returns a random x-ms-request-id, in the form of a UUID.
func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// le64 is how the service writes a CRC-64: little-endian. Its polynomial is 0x9A6C9329AC4BC9B5 in reversed notation,
// which is CRC-64/NVME.
func le64(sum uint64) []byte { return binary.LittleEndian.AppendUint64(nil, sum) }
