"""The RetNet, a text model whose memory has constant size; configs name it as `retnet@RetNet`."""

from models.retnet.model import RetNet as RetNet
