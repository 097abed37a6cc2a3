# A base image from a root file system that mmdebstrap has built, for machines without access to an image registry.
FROM scratch
ADD rootfs.tar /
